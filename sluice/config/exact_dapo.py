"""What "exact DAPO" means in settings: the paper's algorithm (arXiv:2503.14476), and which settings depart from it.

`algorithm.proximal: recompute` and `algorithm.overlong_filtering` are no departures: both are in the paper.
"""

from functools import reduce

from pydantic import BaseModel

_PAPER = {
    "algorithm.filter_groups.enable": (True,),
    "algorithm.filter_groups.metric": ("acc",),
    "algorithm.filter_groups.on_starvation": ("stop", "wait"),
    "algorithm.min_group_size": (0,),
    "algorithm.loss_mode": ("vanilla",),
    "algorithm.loss_agg_mode": ("token-mean",),
    "algorithm.norm_adv_by_std_in_grpo": (True,),
    "algorithm.rollout_correction.rollout_is": ("none",),
    "algorithm.rollout_correction.rollout_rs": ("none",),
}
"""By dotted key, the values under which a run is still the paper's."""


def departures(config: BaseModel) -> list[str]:
    """The settings whose values depart from the paper, written as in a recipe: `algorithm.loss_mode: gspo`."""
    values = {key: reduce(getattr, key.split("."), config) for key in _PAPER}
    return [f"{key}: {_written(value)}" for key, value in values.items() if value not in _PAPER[key]]


def _written(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
