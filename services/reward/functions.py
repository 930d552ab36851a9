"""Makes a verifier of a user's function, `file.py:function` or `module:function`.

The function is called by keyword, with those of these names that the function takes and with the route's settings:

- per sample: `data_source`, `solution_str`, `ground_truth`, `extra_info` (verl's `compute_score`), `prompt_str`, `finished`;
- per group, when the function takes `solution_strs`: `data_sources`, `solution_strs`, `ground_truths`, `extra_infos`,
  `finisheds` (lists, one entry a sample; verl's batched form), and the singular names but `solution_str` and `finished`.

The function may be async. The function returns a number of any library, or a mapping with `score` and optionally `acc`
and `pred`; further numbers of the mapping are named components. Without `score` the score is the sum of the components;
without `acc` the accuracy is the score, cut to [0, 1]. A group function returns a list of numbers or mappings. The
version is the module's `VERSION`, or else a digest of the module's source.
"""

import hashlib
import importlib
import importlib.util
import inspect
import math
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Complex, Real
from pathlib import Path
from types import ModuleType
from typing import Any

from services.reward.ports import Completion, Grade, Question

_GROUP_MARK = "solution_strs"
_OF_SAMPLE = ("data_source", "solution_str", "ground_truth", "extra_info", "prompt_str", "finished")
_OF_GROUP = ("data_sources", _GROUP_MARK, "ground_truths", "extra_infos", "finisheds")
_GROUP_NAMES = (*_OF_GROUP, "data_source", "ground_truth", "extra_info", "prompt_str")
_ALWAYS = ("data_source", "solution_str", "ground_truth", "extra_info")
_ALWAYS_GROUP = ("data_sources", _GROUP_MARK, "ground_truths", "extra_infos")


def load(place: str, settings: Mapping[str, object]) -> "Function | GroupFunction":
    """The verifier of `where:function`. Raises every error of the import, and ValueError for a function of another form."""
    module, function = load_callable(place, what="function")
    kind = GroupFunction if _GROUP_MARK in inspect.signature(function).parameters else Function
    return kind(place, function, version_of(module), settings)


def load_callable(place: str, *, what: str) -> tuple[ModuleType, Callable[..., Any]]:
    """The module and the `what` that `where:name` names. Raises every error of the import, ValueError where it is not there."""
    where, _, name = place.rpartition(":")
    module = _from_file(Path(where)) if where.endswith(".py") else import_module(where)
    found = getattr(module, name, None)
    if not callable(found):
        raise ValueError(f"{place}: {where} has no {what} {name!r}")
    return module, found


def import_module(name: str) -> ModuleType:
    """A grader's module, found in the working directory, on PYTHONPATH or installed. Raises every error of the import.

    Sluice's own graders import nothing from the working directory.
    """
    if name.startswith("services."):
        return importlib.import_module(name)
    with _modules_of(Path.cwd()):
        return importlib.import_module(name)


class _Called:
    """The shared part of both kinds: decides which keywords the function gets."""

    def __init__(self, place: str, function: Callable[..., Any], version: str, settings: Mapping[str, object]) -> None:
        self.NAME, self.VERSION = place, version
        self._function, self._settings = function, dict(settings)

    def prepare(self) -> None:
        """Nothing to do: `load` has imported the function."""

    def _names(self, known: Sequence[str], always: Sequence[str]) -> list[str]:
        """The names among `known` that the function takes; a `**kwargs` gets the names in `always`. Raises ValueError."""
        parameters = inspect.signature(self._function).parameters
        takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
        for name, parameter in parameters.items():
            required = parameter.default is parameter.empty and parameter.kind not in (
                parameter.VAR_KEYWORD,
                parameter.VAR_POSITIONAL,
            )
            if parameter.kind is parameter.POSITIONAL_ONLY:
                raise ValueError(f"{self.NAME}: is called by keyword, but {name!r} is positional only")
            if required and name not in known and name not in self._settings:
                raise ValueError(
                    f"{self.NAME}: nothing to give for {name!r}; known are {', '.join(known)}, others come from "
                    "the route's settings"
                )
        if not takes_all and (extra := [name for name in self._settings if name not in parameters]):
            raise ValueError(f"{self.NAME}: takes no {extra[0]!r}, which the route's settings name")
        return [name for name in known if name in parameters or (takes_all and name in always)]


class Function(_Called):
    """A function of one sample; its `grade` is a coroutine function iff the user's is."""

    def __init__(self, *of: Any) -> None:
        super().__init__(*of)
        self._wanted = self._names(_OF_SAMPLE, _ALWAYS)
        self.grade: Callable[..., Any] = (
            self._grade_async if inspect.iscoroutinefunction(self._function) else self._grade_sync
        )

    def _grade_sync(self, *, question: Question, text: str, finished: bool) -> Grade:
        return grade_of(self._function(**self._keywords(question, text, finished)))

    async def _grade_async(self, *, question: Question, text: str, finished: bool) -> Grade:
        return grade_of(await self._function(**self._keywords(question, text, finished)))

    def _keywords(self, question: Question, text: str, finished: bool) -> dict[str, object]:
        values = {**_of_question(question), "solution_str": text, "finished": finished}
        return {**{name: values[name] for name in self._wanted}, **self._settings}


class GroupFunction(_Called):
    """A function of all samples of a group."""

    def __init__(self, *of: Any) -> None:
        super().__init__(*of)
        self._wanted = self._names(_GROUP_NAMES, _ALWAYS_GROUP)

    def grade_group(
        self, *, question: Question, completions: Sequence[Completion]
    ) -> "list[Grade] | Awaitable[list[Grade]]":
        """A grade a completion, or an awaitable of these grades."""
        values: dict[str, object] = {
            **_of_question(question),
            "data_sources": [question.data_source] * len(completions),
            "solution_strs": [completion.text for completion in completions],
            "ground_truths": [question.ground_truth] * len(completions),
            "extra_infos": [dict(question.extra_info) for _ in completions],
            "finisheds": [completion.finished for completion in completions],
        }
        results = self._function(**{name: values[name] for name in self._wanted}, **self._settings)
        return _awaited(results) if inspect.isawaitable(results) else _grades(results)


def grade_of(result: object) -> Grade:
    """The grade that a function's result stands for. Raises ValueError for a result of another form."""
    if not isinstance(result, Mapping):
        score = _number(result, "the function returned")
        return Grade(raw_score=score, acc=min(max(score, 0.0), 1.0), extracted="")
    components = {
        str(name): number
        for name, value in result.items()
        if name not in ("score", "acc", "pred") and (number := as_number(value)) is not None
    }
    if "score" not in result and not components:
        raise ValueError(f"the function returned no score and no components, got {list(result)}")
    score = _number(result["score"], "score:") if "score" in result else sum(components.values())
    acc = _number(result["acc"], "acc:") if "acc" in result else min(max(score, 0.0), 1.0)
    pred = result.get("pred")
    return Grade(raw_score=score, acc=acc, extracted="" if pred is None else str(pred), parts=components)


def _number(value: object, what: str) -> float:
    """`value` as `as_number` has it. Raises ValueError for what is no number."""
    number = as_number(value)
    if number is None:
        raise ValueError(f"{what} must be a number or a mapping of named numbers, got {value!r:.200}")
    return number


def as_number(value: object) -> float | None:
    """What `float()` makes of a number of any library, numpy's and torch's included; None for what is no number.

    A text is no number, and neither is a complex number, whose imaginary part `float()` of numpy drops. A whole number
    beyond every float is infinite, which the service refuses by name.
    """
    if isinstance(value, str | bytes | bytearray) or (isinstance(value, Complex) and not isinstance(value, Real)):
        return None
    try:
        value = value.item() if getattr(value, "size", None) == 1 else value  # pyrefly: ignore[missing-attribute]
        return float(value)  # pyrefly: ignore[bad-argument-type] - a value without a float raises TypeError
    except OverflowError:
        return math.inf
    except (TypeError, ValueError, RuntimeError):  # RuntimeError: a tensor with several items
        return None


def _grades(results: Any) -> list[Grade]:
    return [grade_of(result) for result in results]


async def _awaited(results: Awaitable[Any]) -> list[Grade]:
    return _grades(await results)


def _of_question(question: Question) -> dict[str, object]:
    return {
        "data_source": question.data_source,
        "ground_truth": question.ground_truth,
        "extra_info": dict(question.extra_info),
        "prompt_str": question.prompt_text,
    }


def _from_file(path: Path) -> ModuleType:
    """The file as a module, read once a process; modules in the file's folder can be imported, as for a script."""
    path = path.resolve()
    name = f"sluice_grader_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file; the reward service looks for it from {Path.cwd()}")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        with _modules_of(path.parent):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


@contextmanager
def _modules_of(folder: Path) -> Iterator[None]:
    """Has modules looked for in `folder`: first while a grader is imported, as for a script, and last from then on, so that
    no file there stands for a module that another grader of this process imports later."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        if str(folder) not in sys.path:
            sys.path.append(str(folder))


def version_of(module: ModuleType) -> str:
    """What the module states as its `VERSION`, or else a digest of its source."""
    stated = getattr(module, "VERSION", None)
    if stated is not None:
        return str(stated)
    return hashlib.sha256(inspect.getsource(module).encode()).hexdigest()[:12]
