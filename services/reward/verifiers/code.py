"""Grades programs by running them on test cases: 1 when every case passes, else 0 (or the share that passes).

The program is a fenced block of the completion (program_text.py); as in verl's prime_code it finds the names of the usual
modules, such as `List` or `deque`, without importing them. The ground truth is JSON in the form of APPS and prime_code:
`inputs` and `outputs` of equal length, and `fn_name` for function cases; or in LiveCodeBench's, a list of {`input`, `output`},
with `metadata.func_name` for function cases. Without a function's name an input is the standard input and an output is the text
to print, each also as a list of lines. With the name an input is a list of arguments (or a text with
one JSON value a line) and an output is the value to return. case_outputs.py compares. A program that crashes passes no case.

Every program runs in code_child.py, in a session of its own, under limits of CPU time, memory, file size and processes,
without the service's environment, and sees no file, socket or process but its own and the interpreter (docs/security.md). Where
the kernel does not permit that (`promises()`), the grader refuses to grade unless `reward.allow_unsandboxed` says that the
operator accepts it. A program that uses up its CPU time
is wrong. A program that only waits is a `timeout`, because it cannot be told from a program on a machine that is too busy.
"""

import contextlib
import functools
import json
import math
import os
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

from services.reward.case_outputs import parsed, printed_equal, returned_equal
from services.reward.ports import Grade, Question
from services.reward.program_text import find_program
from services.reward.sandbox.shutting_in import PROMISES
from sluice.run_dir.full_disk import check_room

NAME: Final = "code"
VERSION: Final = "2"

_CHILD = Path(__file__).parent.parent / "sandbox" / "code_child.py"
_MAX_OUTPUT_BYTES = 1 << 20
_ROOM_BYTES = 4 * _MAX_OUTPUT_BYTES
"""What must be free for a run. Chosen: the output, and files of the program beside it."""
_EXTRACTED_CHARS = 2000
_ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "HOME": ".",
    "TMPDIR": ".",
    "OMP_NUM_THREADS": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
}
"""All that a program sees of the environment."""
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
    isolation: Literal["if_possible", "required"] = "required"
    """Whether programs may only run shut in. The service sets `if_possible` where `reward.allow_unsandboxed` is true."""

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
    RuntimeError where isolation is required and not permitted, or could not be had this time.
    """
    if settings.isolation == "required" and (problem := sandbox_problem()):
        raise RuntimeError(f"code: {problem}")
    cases = _cases(question.ground_truth)
    program = find_program(text, function=cases.function)
    if program is None:
        return Grade(raw_score=0.0, acc=0.0, extracted="", status="unparsed")
    passed = _passed(program, cases, settings)
    share = passed / len(cases.inputs)
    return Grade(
        raw_score=share if settings.partial_credit else float(share == 1.0),
        acc=float(share == 1.0),
        extracted=program[:_EXTRACTED_CHARS],
        parts={"passed": share},
    )


def play(program: str, settings: Settings) -> tuple[bool, str]:
    """Runs a program once, without input: whether it ended well, and what it printed, its errors included.

    Raises as `grade` does.
    """
    if settings.isolation == "required" and (problem := sandbox_problem()):
        raise RuntimeError(f"code: {problem}")
    check_room(Path(tempfile.gettempdir()), _ROOM_BYTES)
    with tempfile.TemporaryDirectory(prefix="sluice-code-") as folder:
        (Path(folder) / "program.py").write_text(program, encoding="utf-8", errors="replace")
        return _Budget(settings, Path(folder)).played(["stdin"], "", stderr=subprocess.STDOUT)


@functools.cache
def promises() -> frozenset[str]:
    """What programs are kept from on this machine: those of shutting_in.PROMISES that hold."""
    with tempfile.TemporaryDirectory(prefix="sluice-code-") as folder:
        program = Path(folder) / "program.py"
        program.touch()
        command = [sys.executable, "-I", str(_CHILD), "{}", "probe", str(program)]
        said = subprocess.run(command, timeout=30, check=True, stdout=subprocess.PIPE, cwd=folder, env=_ENVIRONMENT)
    return frozenset(json.loads(said.stdout))


def sandbox_problem() -> str | None:
    """What programs cannot be kept from here, in a line; None when all promises hold."""
    missing = sorted(PROMISES - promises())
    if not missing:
        return None
    return (
        f"this machine lets programs reach {', '.join(missing)} of the reward service's user: it permits neither user "
        "namespaces nor Landlock (Linux 6.2); permit one of them (docs/security.md), or set reward.allow_unsandboxed: true"
    )


def _passed(program: str, cases: _Cases, settings: Settings) -> int:
    """How many cases pass; after the first failure cases are run only for partial credit.

    Raises NoRoom where a program could not print for want of room, which is no fault of the program.
    """
    check_room(Path(tempfile.gettempdir()), _ROOM_BYTES)
    with tempfile.TemporaryDirectory(prefix="sluice-code-") as folder:
        budget = _Budget(settings, Path(folder))
        (Path(folder) / "program.py").write_text(program, encoding="utf-8", errors="replace")
        if cases.function is not None:
            return _functions_passed(cases, budget, all_of_them=settings.partial_credit)
        passed = 0
        for given, wanted in zip(cases.inputs, cases.outputs, strict=True):
            printed = budget.run(["stdin"], given)
            right = printed is not None and printed_equal(printed, wanted)
            passed += right
            if not right and not settings.partial_credit:
                break
        return passed


def _functions_passed(cases: _Cases, budget: "_Budget", *, all_of_them: bool) -> int:
    """One process calls the function for all cases; the results are compared here, out of the program's reach."""
    asked = json.dumps({"function": cases.function, "arguments": [_arguments(one) for one in cases.inputs]})
    printed = budget.run(["function"], asked)
    passed = 0
    replies = (printed or "").split("\n")
    for line, given, wanted in zip(replies, cases.inputs, cases.outputs, strict=False):
        right = returned_equal(line, wanted, as_json=isinstance(given, str))
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
        ended, printed = self.played(mode, given)
        return printed if ended else None

    def played(self, mode: list[str], given: str, *, stderr: int = subprocess.DEVNULL) -> tuple[bool, str]:
        """Whether the run ended well, and its output. Raises TimeoutError as `grade` does."""
        limits = {
            "cpu_s": math.ceil(self._cpu_left_s + _START_S),
            "memory_bytes": self._settings.memory_bytes,
            "file_bytes": _MAX_OUTPUT_BYTES,
            "shut_in": self._settings.isolation == "required",
        }
        work = self._folder / "work"
        work.mkdir(exist_ok=True)
        paths = [self._folder / name for name in ("program.py", "stdin", "stdout")]
        paths[1].write_text(given, encoding="utf-8", errors="replace")
        begun, begins = os.pipe()
        try:
            command = [
                sys.executable,
                "-I",
                str(_CHILD),
                json.dumps({**limits, "begun_fd": begins}),
                *mode,
                str(paths[0]),
            ]
            with paths[1].open("rb") as stdin, paths[2].open("wb") as stdout:
                process = subprocess.Popen(
                    command,
                    stdin=stdin,
                    stdout=stdout,
                    stderr=stderr,
                    cwd=work,
                    env=_ENVIRONMENT,
                    start_new_session=True,
                    pass_fds=[begins],
                )
                ended = self._until_ended(process)
        finally:
            os.close(begins)
            has_begun = os.read(begun, 1)
            os.close(begun)
        if not has_begun:
            raise RuntimeError("code: the program could not be shut in this time, or its interpreter did not start")
        return ended, paths[2].read_bytes().decode("utf-8", errors="replace")

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
        raw = json.loads(raw) if isinstance(raw, str) else raw  # some data sets write their JSON as JSON once more
    except (ValueError, RecursionError) as error:
        raise ValueError(f"ground_truth: must be JSON with inputs and outputs: {error}") from error
    raw = _from_list(raw) if isinstance(raw, list) else raw
    inputs, outputs = (raw.get("inputs"), raw.get("outputs")) if isinstance(raw, Mapping) else (None, None)
    if not isinstance(inputs, list) or not isinstance(outputs, list) or len(inputs) != len(outputs) or not inputs:
        raise ValueError(
            "ground_truth: must be JSON with lists `inputs` and `outputs` of one length >= 1, or a list of {input, output}"
        )
    function = raw.get("fn_name") or None  # a column of files without gaps has "" for none
    if function is None:
        inputs, outputs = _texts(inputs), _texts(outputs)
    elif not isinstance(function, str):
        raise ValueError(f"ground_truth: fn_name must be text, got {function!r:.60}")
    return _Cases(inputs=inputs, outputs=outputs, function=function)


def _from_list(cases: list[Any]) -> Any:
    """LiveCodeBench's list of cases in APPS's form; another list unchanged. Raises ValueError without a function's name."""
    if not cases or not all(isinstance(case, Mapping) and {"input", "output"} <= case.keys() for case in cases):
        return cases
    details = cases[0].get("metadata")
    function = details.get("func_name") if isinstance(details, Mapping) else None
    if cases[0].get("testtype") == "functional" and not function:
        raise ValueError("ground_truth: functional cases must have the function's name in metadata.func_name")
    return {
        "inputs": [case["input"] for case in cases],
        "outputs": [case["output"] for case in cases],
        "fn_name": function,
    }


def _texts(written: list[Any]) -> list[str]:
    """Standard inputs or outputs, each a text or a list of lines. Raises ValueError."""
    return ["\n".join(map(_line, one)) if isinstance(one, list) else _line(one) for one in written]


def _line(one: Any) -> str:
    if not isinstance(one, str):
        raise ValueError(
            "ground_truth: inputs and outputs must be texts, or lists of lines, where there is no fn_name, "
            f"got {one!r:.80}"
        )
    return one


def _arguments(given: Any) -> list[Any]:
    """The arguments of a call; a text has one JSON value a line."""
    if isinstance(given, str):
        return [parsed(line) for line in given.split("\n") if line.strip()]
    return given if isinstance(given, list) else [given]


def _children_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
