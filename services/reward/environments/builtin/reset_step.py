"""`gymnasium` and `openenv`: environments with `reset` and `step`, as text. Neither library is imported unless the code that
`make` names does so.

Settings: `make` (`file.py:Class`, `module:Class`, or a function that makes the environment: `gymnasium:make`), `args` (its
keywords), `reward` (`sum` of all steps, or that of the `last`), `action` (what `step` gets of a turn: its `text`, the `json` in
it, or what a function of yours, `file.py:function`, makes of the text) and `field` (the field of an observation that the policy
reads).

`reset` gets the row's seed and its env_args, as `options` where it takes them, else as keywords. `reset` returns an
observation, (observation, info), or an object with `observation`. `step` returns (observation, reward, terminated,
truncated, info), or an object with `reward` and `done`: a StepResult or an Observation of OpenEnv. `reset` and `step`
may be async.
"""

import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Final, Literal

from services.reward import functions
from sluice.environments import Message, Opening, Reply, Row, Score

VERSION: Final = "1"

_SEEDS: Final = 1 << 31
"""Seeds of numpy's and Python's older generators are below this."""
_BESIDE = ("done", "reward", "metadata")
"""Fields of an OpenEnv observation that are not for the policy."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Step:
    """What one step gave, in whichever form."""

    observation: object
    reward: float
    done: bool
    truncated: bool
    info: Mapping[str, Any]


class ResetStep:
    """The environment."""

    scores = True

    def __init__(
        self,
        *,
        make: str,
        args: Mapping[str, Any] | None = None,
        reward: Literal["sum", "last"] = "sum",
        action: str = "text",
        field: str = "",
    ) -> None:
        """Raises ValueError for settings that cannot be, and what `make` raises."""
        if reward not in ("sum", "last"):
            raise ValueError(f"reward: must be sum or last, got {reward!r:.60}")
        if ":" not in make:
            raise ValueError(f"make: must be `file.py:Class`, `module:Class` or a function's place, got {make!r:.80}")
        module, maker = functions.load_callable(make, what="class or function")
        self.VERSION = f"{_version(module)}+{VERSION}"
        self._sums, self._field, self._read = reward == "sum", field, _reader(action)
        self._inner: Any = maker(**(args or {}))
        if missing := [one for one in ("reset", "step") if not callable(getattr(self._inner, one, None))]:
            raise ValueError(f"make: what {make} makes has no method `{missing[0]}`")
        self._score, self._steps = 0.0, 0
        self._end: _Step | None = None

    def open(self, row: Row) -> Any:
        """The row's chat, with the observation at the end of its last turn."""

        def opened(given: Any) -> Opening:
            observation = given[0] if isinstance(given, tuple) and given else getattr(given, "observation", given)
            text = self._text(observation)
            *before, last = row.messages
            if last.role != "user":
                return Opening(messages=[*row.messages, Message(role="user", content=text)])
            return Opening(messages=[*before, Message(role="user", content=f"{last.content}\n\n{text}".strip())])

        return _then(self._inner.reset(**self._keywords(row)), opened)

    def step(self, message: Message) -> Any:
        """The next observation. A turn that is no action makes no step: the policy reads that it is none."""
        try:
            action = self._read(message.content)
        except ValueError as error:
            return f"error: {error}"
        return _then(self._inner.step(action), self._replied)

    def unfinished(self) -> Score:
        """The rewards of an episode that the policy's budget cut."""
        return self._scored(truncated=True)

    def close(self) -> Any:
        """Closes what was made, where it can be closed."""
        closes = getattr(self._inner, "close", None)
        return closes() if callable(closes) else None

    def _replied(self, given: Any) -> Reply:
        taken = _step_of(given)
        self._steps += 1
        self._score = self._score + taken.reward if self._sums else taken.reward
        self._end = taken
        messages = [Message(role="user", content=self._text(taken.observation))]
        return Reply(
            messages=messages, done=taken.done, score=self._scored(truncated=taken.truncated) if taken.done else None
        )

    def _scored(self, *, truncated: bool) -> Score:
        info = self._end.info if self._end else {}
        said = (info[name] for name in ("is_success", "success") if name in info)
        success = next((number for one in said if (number := functions.as_number(one)) in (0.0, 1.0)), None)
        return Score(
            score=self._score,
            acc=success,
            parts={"steps": float(self._steps), "truncated": float(truncated)},
        )

    def _keywords(self, row: Row) -> dict[str, Any]:
        """What `reset` takes of seed and arguments. Raises ValueError for arguments that it does not take."""
        takes = inspect.signature(self._inner.reset).parameters
        takes_all = any(one.kind is one.VAR_KEYWORD for one in takes.values())
        seed = {"seed": row.seed % _SEEDS} if "seed" in takes or takes_all else {}
        if "options" in takes:
            return seed | {"options": dict(row.arguments) or None}
        if not takes_all and (extra := [name for name in row.arguments if name not in takes]):
            raise ValueError(f"env_args: reset takes no {extra[0]!r}")
        return seed | dict(row.arguments)

    def _text(self, observation: object) -> str:
        """A text as it is; the one text, or the field `field`, of a mapping or a model; anything else as JSON, or by `str`."""
        dump = getattr(observation, "model_dump", None)
        given = dump() if callable(dump) else observation
        if isinstance(given, Mapping):
            fields = {str(name): value for name, value in given.items() if not (dump and name in _BESIDE)}
            if self._field and self._field not in fields:
                raise ValueError(f"field: the observation has no {self._field!r}, it has {', '.join(fields)[:200]}")
            given = fields[self._field] if self._field else fields
            if isinstance(given, dict) and len(given) == 1 and isinstance(only := next(iter(given.values())), str):
                return only
        if isinstance(given, Mapping | list | tuple):
            return json.dumps(given, default=str, ensure_ascii=False)
        return str(given)


def _version(module: ModuleType) -> str:
    try:
        return functions.version_of(module)
    except (OSError, TypeError):  # a module without a source
        return module.__name__


def _reader(action: str) -> Callable[[str], Any]:
    if action == "text":
        return str
    if action == "json":
        return _json
    if ":" not in action:
        raise ValueError(f"action: must be text, json or `file.py:function`, got {action!r:.80}")
    return functions.load_callable(action, what="function")[1]


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError("the turn must be JSON and nothing else") from None


def _step_of(given: Any) -> _Step:
    """Raises ValueError for what no step returns."""
    if isinstance(given, tuple) and len(given) == 5:
        observation, reward, terminated, truncated, info = given
        done = bool(terminated) or bool(truncated)
        return _Step(
            observation=observation,
            reward=_number(reward),
            done=done,
            truncated=done and not terminated,
            info=info or {},
        )
    if isinstance(given, tuple) or not hasattr(given, "done") or not hasattr(given, "reward"):
        raise ValueError(
            "step must return (observation, reward, terminated, truncated, info), or an object with `reward` and `done`, "
            f"got {type(given).__name__}{f' of {len(given)}' if isinstance(given, tuple) else ''}"
        )
    return _Step(
        observation=getattr(given, "observation", given),
        reward=_number(given.reward),
        done=bool(given.done),
        truncated=False,
        info=getattr(given, "metadata", None) or {},
    )


def _number(reward: object) -> float:
    if reward is None:
        return 0.0
    number = functions.as_number(reward)
    if number is None:
        raise ValueError(f"step: reward must be a number, got {reward!r:.60}")
    return number


def _then(given: Any, follow: Callable[[Any], Any]) -> Any:
    """`follow` of what was returned: at once, or once it is there."""
    if not inspect.isawaitable(given):
        return follow(given)

    async def later() -> Any:
        return follow(await given)

    return later()
