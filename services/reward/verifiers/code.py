"""Grades programs by running them on test cases: 1 when every case passes, else 0 (or the share that passes).

The program is the last fenced block of the completion. The ground truth is JSON in the form of APPS and verl's prime_code:
`inputs` and `outputs` of equal length, and `fn_name` for function cases. Without `fn_name` an input is the standard input
and an output is the text to print, compared word by word. With `fn_name` an input is a list of arguments (or a text with
one JSON value a line) and an output is the value to return; floats may differ by 1e-6.

Every program runs in code_child.py, in a session of its own, under limits of CPU time, memory, file size and processes,
in an empty folder without the service's environment. Where the kernel permits namespaces (`isolated()`) a program has no
network and leaves no process behind; `isolation: required` refuses to grade elsewhere. A program that uses up its CPU time
is wrong. A program that only waits is a `timeout`, because it cannot be told from a program on a machine that is too busy.
"""

import contextlib
import functools
import json
import math
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from services.reward.ports import Grade, Question

NAME: Final = "code"
VERSION: Final = "1"

_CHILD = Path(__file__).parent.parent / "sandbox" / "code_child.py"
_BLOCK = re.compile(r"```[ \t]*[\w+-]*[ \t]*\n(.*?)```", re.DOTALL)
_MAX_OUTPUT_BYTES = 1 << 20
_EXTRACTED_CHARS = 2000
_START_S = 1.0
"""CPU time of starting an interpreter, which does not count against the program."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """The settings of a route."""

    cpu_s: float = 4.0
    """CPU time of a completion over all cases."""
    wall_s: float = 8.0
    """Wall clock of a completion; should be below reward.timeout_s."""
    memory_bytes: int = 1 << 29
    partial_credit: bool = False
    """Score the share of cases passed, and run all cases; else stop at the first failed case."""
    isolation: Literal["if_possible", "required"] = "if_possible"

    def __post_init__(self) -> None:
        """Raises ValueError for a limit that is not positive."""
        for name in ("cpu_s", "wall_s", "memory_bytes"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: must be > 0, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Cases:
    inputs: Sequence[Any]
    outputs: Sequence[Any]
    function: str | None


def prepare() -> None:
    """Nothing is slow here."""


def grade(*, question: Question, text: str, finished: bool, settings: Settings = Settings()) -> Grade:
    """Raw score 1.0, 0.0 or the share passed; `unparsed` without a fenced block; `parts` has the share passed.

    Raises ValueError for a ground truth without cases, TimeoutError when the wall clock ran out before the CPU time,
    RuntimeError where isolation is required and not permitted.
    """
    if settings.isolation == "required" and not isolated():
        raise RuntimeError("code: namespaces are not permitted here, and the route's settings require isolation")
    cases = _cases(question.ground_truth)
    blocks = _BLOCK.findall(text)
    if not blocks:
        return Grade(raw_score=0.0, acc=0.0, extracted="", status="unparsed")
    passed = _passed(blocks[-1], cases, settings)
    share = passed / len(cases.inputs)
    return Grade(
        raw_score=share if settings.partial_credit else float(share == 1.0),
        acc=float(share == 1.0),
        extracted=blocks[-1][:_EXTRACTED_CHARS],
        parts={"passed": share},
    )


@functools.cache
def isolated() -> bool:
    """Whether programs run without network and in a process namespace of their own."""
    limits = {"cpu_s": 1, "memory_bytes": 1 << 29, "file_bytes": _MAX_OUTPUT_BYTES}
    command = [sys.executable, "-I", str(_CHILD), json.dumps(limits), "probe"]
    return subprocess.run(command, timeout=30, check=False, capture_output=True).returncode == 0


def _passed(program: str, cases: _Cases, settings: Settings) -> int:
    """How many cases pass; after the first failure cases are run only for partial credit."""
    with tempfile.TemporaryDirectory(prefix="sluice-code-") as folder:
        budget = _Budget(settings, Path(folder))
        (Path(folder) / "program.py").write_text(program, encoding="utf-8", errors="replace")
        if cases.function is not None:
            return _functions_passed(cases, budget, all_of_them=settings.partial_credit)
        passed = 0
        for given, wanted in zip(cases.inputs, cases.outputs, strict=True):
            right = _words(budget.run(["stdin"], given) or "") == _words(wanted)
            passed += right
            if not right and not settings.partial_credit:
                break
        return passed


def _functions_passed(cases: _Cases, budget: "_Budget", *, all_of_them: bool) -> int:
    """One process calls the function for all cases; the results are compared here, out of the program's reach."""
    given = json.dumps({"function": cases.function, "arguments": [_arguments(one) for one in cases.inputs]})
    printed = budget.run(["function"], given)
    passed = 0
    for line, wanted in zip((printed or "").splitlines(), cases.outputs, strict=False):
        right = _equal(_parsed(line), {"value": _value(wanted)})
        passed += right
        if not right and not all_of_them:
            break
    return passed


class _Budget:
    """Runs processes until the completion's CPU time is used up."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self._settings, self._folder = settings, folder
        self._cpu_left_s, self._wall_left_s = settings.cpu_s, settings.wall_s

    def run(self, mode: list[str], given: str) -> str | None:
        """The output of a run; None when the run failed or used up its CPU time. Raises TimeoutError as `grade` does."""
        if self._cpu_left_s <= 0:
            return None
        limits = {
            "cpu_s": math.ceil(self._cpu_left_s + _START_S),
            "memory_bytes": self._settings.memory_bytes,
            "file_bytes": _MAX_OUTPUT_BYTES,
        }
        work = self._folder / "work"
        work.mkdir(exist_ok=True)
        paths = [self._folder / name for name in ("program.py", "stdin", "stdout")]
        paths[1].write_text(given, encoding="utf-8", errors="replace")
        command = [sys.executable, "-I", str(_CHILD), json.dumps(limits), *mode, str(paths[0])]
        with paths[1].open("rb") as stdin, paths[2].open("wb") as stdout:
            process = subprocess.Popen(
                command,
                stdin=stdin,
                stdout=stdout,
                stderr=subprocess.DEVNULL,
                cwd=work,
                env={"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"},
                start_new_session=True,
            )
            ended = self._until_ended(process)
        if not ended:
            return None
        return paths[2].read_bytes().decode("utf-8", errors="replace")

    def _until_ended(self, process: "subprocess.Popen[bytes]") -> bool:
        """Whether the process ended well. Books the process's time and ends its whole session."""
        before = _children_cpu_s()
        started = time.monotonic()
        try:
            code = process.wait(timeout=self._wall_left_s)
        except subprocess.TimeoutExpired:
            raise TimeoutError(
                f"the program ran for {self._settings.wall_s:g} s without using its {self._settings.cpu_s:g} s of CPU time"
            ) from None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self._wall_left_s = max(self._wall_left_s - (time.monotonic() - started), 0.1)
        self._cpu_left_s -= _children_cpu_s() - before
        return code == 0


def _cases(ground_truth: str) -> _Cases:
    """The cases of a ground truth. Raises ValueError for a ground truth of another form."""
    try:
        raw = json.loads(ground_truth)
    except ValueError as error:
        raise ValueError(f"ground_truth: must be JSON with inputs and outputs: {error}") from error
    inputs, outputs = (raw.get("inputs"), raw.get("outputs")) if isinstance(raw, Mapping) else (None, None)
    if not isinstance(inputs, list) or not isinstance(outputs, list) or len(inputs) != len(outputs) or not inputs:
        raise ValueError("ground_truth: must be JSON with lists `inputs` and `outputs` of one length >= 1")
    function = raw.get("fn_name")
    if function is None and not all(isinstance(one, str) for one in (*inputs, *outputs)):
        raise ValueError("ground_truth: inputs and outputs must be texts where there is no fn_name")
    return _Cases(inputs=inputs, outputs=outputs, function=function)


def _arguments(given: Any) -> list[Any]:
    if isinstance(given, str):
        return [_value(line) for line in given.splitlines()]
    return given if isinstance(given, list) else [given]


def _value(written: Any) -> Any:
    """The value of a text that is JSON, else the text itself; APPS writes values in both ways."""
    if not isinstance(written, str):
        return written
    try:
        return json.loads(written)
    except ValueError:
        return written


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, float) or isinstance(other, float):
        numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in (one, other))
        return numbers and math.isclose(one, other, rel_tol=1e-6, abs_tol=1e-9)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_equal, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    return type(one) is type(other) and one == other


def _words(text: str) -> list[list[str]]:
    """The words of each line; blank lines at the end and the spacing of words do not count."""
    lines = [line.split() for line in text.splitlines()]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def _children_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
