"""What "exact DAPO" means in settings: the paper's algorithm (arXiv:2503.14476), and which settings depart from it.

`algorithm.proximal: recompute` and `algorithm.overlong_filtering` are no departures, because the paper has them. That
there is no KL term needs no check, because the schema takes no other value. Lengths, batch sizes, the learning rate and
the model are of the run, not of the algorithm.
"""

from functools import reduce

from pydantic import BaseModel

_PAPER = {
    "data.sampler": ("shuffle",),
    "rollout.temperature": (1.0,),
    "algorithm.clip_ratio_low": (0.2,),
    "algorithm.clip_ratio_high": (0.28,),
    "algorithm.clip_ratio_c": (None, 10.0),
    "algorithm.filter_groups.enable": (True,),
    "algorithm.filter_groups.metric": ("acc",),
    "algorithm.filter_groups.on_starvation": ("stop", "wait"),
    "algorithm.min_group_size": (0,),
    "algorithm.loss_mode": ("vanilla",),
    "algorithm.adv_estimator": ("grpo",),
    "algorithm.ess_scaling": (False,),
    "algorithm.loss_agg_mode": ("token-mean",),
    "algorithm.norm_adv_by_std_in_grpo": (True,),
    "algorithm.rollout_correction.rollout_is": ("none",),
    "algorithm.rollout_correction.rollout_rs": ("none",),
    "algorithm.rollout_correction.opsm_delta": (None,),
    "reward.overlong_buffer.enable": (True,),
    "reward.overlong_buffer.penalty_factor": (1.0,),
    "coordinator.max_staleness": (0, 1),
}
"""By dotted key, the values under which a run is still the paper's.

The dual clip is not in the paper; 10 is what the published runs of the authors' code have. The paper alternates generation
and training (age 0); at 1 the two overlap, and each token's ratio is to the policy that sampled the token, as in eq. 9.
"""


def departures(config: BaseModel) -> list[str]:
    """The settings whose values depart from the paper, written as in a recipe: `algorithm.loss_mode: gspo`."""
    values = {key: reduce(getattr, key.split("."), config) for key in _PAPER}
    return [f"{key}: {_written(value)}" for key, value in values.items() if value not in _PAPER[key]]


def _written(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
