"""The rules for verl settings that verl_table.py uses, and how the values of settings are converted."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

_NAME_CHARACTERS = 200
"""Longest run.name."""


class Unset(ValueError):
    """Raised by a conversion whose value leaves Sluice's default in place; the message is the note for the reader."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Move:
    """The setting goes to other keys, converted. The conversion raises ValueError for a value that cannot be honoured."""

    to: tuple[str, ...]
    convert: Callable[[Any], Any] = lambda value: value
    fallback: bool = False
    """The setting gives way to any other setting that moves to the same key."""
    note: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ignore:
    """The setting makes no difference in Sluice; `reason` says why."""

    why: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Only:
    """The setting is refused unless the value is one of these."""

    values: tuple[Any, ...]
    why: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Switched:
    """The setting makes no difference while another setting of the source has one of the values `off`; else `rule` holds."""

    switch: str
    off: tuple[Any, ...]
    rule: "Move | Only"


@dataclass(frozen=True, kw_only=True, slots=True)
class Function:
    """One of the settings that name the function that grades everything; `reward_routes` puts these settings together."""

    part: Literal["path", "name", "setting"]


Rule = Move | Ignore | Only | Switched | Function


def move(to: str, convert: Callable[[Any], Any] = lambda value: value, *, note: str = "") -> Move:
    return Move(to=(to,), convert=convert, note=note)


def under(prefix: str, rules: Mapping[str, Rule]) -> dict[str, Rule]:
    return {f"{prefix}.{key}": rule for key, rule in rules.items()}


def files(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def reward_routes(path: str, name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The routes for `custom_reward_function`, which grades every data source. Raises ValueError for an unusable path."""
    module = path.removeprefix("pkg://").replace("/", ".").removesuffix(".py") if path.startswith("pkg://") else None
    place = module or path.removeprefix("file://")
    if module is None and not place.endswith(".py"):
        raise ValueError("must be a Python file, FILE.py, or a module, pkg://MODULE")
    return {"*": {"grader": f"{place}:{name}", **({"settings": dict(settings)} if settings else {})}}


def engine(value: Any) -> str:
    if value not in ("vllm", "hf"):
        raise ValueError("the engines are vllm and, for hf, transformers; set it to vllm")
    return "transformers" if value == "hf" else value


def dtype(value: Any) -> str:
    if value not in ("bfloat16", "float32"):
        raise ValueError("weights are pushed as bfloat16 or float32; set it to bfloat16")
    return value


def run_name(value: Any) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", str(value))[:_NAME_CHARACTERS]


def save_freq(value: Any) -> int:
    if value <= 0:
        raise Unset("checkpoints are always written: they are the commit points of a run")
    return value


def eval_temperature(value: Any) -> float:
    if value == 0:
        raise Unset("a greedy completion a prompt is evaluated anyway (eval.greedy), beside sampled ones")
    return value


def eval_greedy(value: Any) -> bool:
    if value:
        raise Unset("both sampled and greedy completions are evaluated")
    return True


def resume(value: Any) -> str:
    if value not in ("auto", "disable"):
        raise ValueError("set it to auto or disable, and learner.resume to the checkpoint's path in the new recipe")
    return "never" if value == "disable" else value


def token_level_loss(value: Any) -> str:
    return "token-mean" if value else "seq-mean-token-mean"


def schedule(value: Any) -> str:
    if value not in ("constant", "linear", "cosine", None):
        raise ValueError("schedules are constant, linear and cosine; set it to one of them")
    return value or "constant"


def loss_mode(value: Any) -> str:
    if value == "bypass_mode":
        raise Unset("rollout_correction.loss_type says which loss")
    if value not in ("vanilla", "gspo", "cispo", "dppo_tv", "dppo_kl", "sapo"):
        raise ValueError(
            "policy losses are vanilla (DAPO's), gspo, cispo, dppo_tv, dppo_kl and sapo; set it to one of them"
        )
    return value


def bypass_loss(value: Any) -> str:
    if value == "ppo_clip":
        raise Unset("policy_loss.loss_mode says which clipped loss")
    if value != "reinforce":
        raise ValueError(
            "losses without recomputed log-probabilities are ppo_clip and reinforce; set it to one of them"
        )
    return value


def adv_estimator(value: Any) -> str:
    if value == "grpo":
        raise Unset("advantages are relative to the group (DAPO eq. 9) unless maxrl is asked for")
    if value != "maxrl":
        raise ValueError("advantages are relative to the group: grpo (DAPO eq. 9) or maxrl; set it to grpo")
    return value


def bypass(value: Any) -> str:
    if not value:
        raise Unset("algorithm.proximal is recompute where an importance weight is asked for, and rollout otherwise")
    return "rollout"


def context_size(value: Any) -> int:
    if value == 1:
        raise Unset("one rank computes a micro-batch")
    return value


def correction_level(*levels: str) -> Callable[[Any], str]:
    """`null` is `none`; anything else must be one of `levels`."""

    def convert(value: Any) -> str:
        if value not in (None, False, *levels):
            raise ValueError(f"levels are {', '.join(levels)}; set it to one of them or to null")
        return value or "none"

    return convert


def one_bound(value: Any) -> Any:
    """A threshold. Raises ValueError for `lower_upper`, verl's text for two bounds (IcePop)."""
    if isinstance(value, str):
        raise ValueError(
            "two bounds in one text are two settings: for IcePop set rollout_is_threshold and rollout_rs_threshold to the "
            "upper bound, rollout_rs_threshold_lower to the lower one, and rollout_rs: token"
        )
    return value
