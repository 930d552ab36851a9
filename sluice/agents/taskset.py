"""A taskset of `verifiers` and the environment around it: loaded by name, and its tasks found by number."""

import asyncio
import importlib
import importlib.util
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from sluice.errors import ConfigError, DataError, LaunchError

KEY_CHARACTERS: Final = 32
"""Of a task's key, 64 hexadecimal digits where its author chose no other."""
SCORED: Final = "scored by its taskset"
"""The ground truth of rows whose score is not a grader's: a row must have one."""


def library() -> Any:
    """The module `verifiers.v1`. Raises LaunchError where verifiers is missing."""
    if importlib.util.find_spec("verifiers") is None:
        raise LaunchError('verifiers is not installed in this environment; pip install "sluice-rl[verifiers]"')
    return importlib.import_module("verifiers.v1")


def env_config(taskset: str, *, env: str, settings: str) -> Any:
    """The configuration of an environment (`verifiers.v1.EnvConfig`). Raises ConfigError.

    `taskset`: a name that verifiers knows, or a file `.py`; `env`: the environment to pair it with, empty for its own;
    `settings`: JSON, the keys of verifiers' `[env]` block.
    """
    vf = library()
    tree = _settings(settings)
    name = _importable(taskset)
    tree["taskset"] = {**(tree.get("taskset") or {}), "id": name}
    if env:
        tree["id"] = env
    try:
        return vf.resolve_env_config(tree)
    except (
        ImportError,
        AttributeError,
        TypeError,
        ValueError,
    ) as error:  # of verifiers, of a user's module, of pydantic
        raise ConfigError(f"--taskset {taskset}: {error}") from error


def _settings(written: str) -> dict[str, Any]:
    try:
        tree = json.loads(written or "{}")
        if not isinstance(tree, dict) or not isinstance(tree.get("taskset") or {}, dict):
            raise ValueError("an object, and so its `taskset`")
    except ValueError as error:
        raise ConfigError(
            f"--args: must be JSON, an object of verifiers' [env] settings, got {written!r}: {error}"
        ) from None
    return tree


def _importable(taskset: str) -> str:
    """The name under which verifiers imports a taskset; a file's folder is put on the path for modules."""
    if not taskset.endswith(".py"):
        return taskset
    path = Path(taskset).expanduser().absolute()
    if not path.is_file() or not path.stem.isidentifier() or path.stem != path.stem.lower():
        raise ConfigError(
            f"--taskset: must be the name of a taskset, or a file name_in_small_letters.py, got {taskset}"
        )
    sys.path.insert(0, str(path.parent))
    return path.stem


class Tasks:
    """The tasks of a taskset by number, read as far as they are asked for."""

    def __init__(self, taskset: Any) -> None:
        self._unread: Iterator[Any] = iter(taskset)
        self._read: list[Any] = []
        self._lock = asyncio.Lock()

    async def of(self, arguments: Mapping[str, object]) -> Any:
        """The task that a row's env_args name. Raises ConfigError where the taskset has no such task."""
        number, key = arguments.get("task"), arguments.get("key")
        if not isinstance(number, int) or isinstance(number, bool) or number < 0:
            raise ConfigError(
                f"env_args.task: must be the number of a task, got {number!r}; write rows with `sluice agent verifiers-rows`"
            )
        async with self._lock:
            if number >= len(self._read):
                await asyncio.to_thread(self._read_to, number)
        if number >= len(self._read) or self._read[number].key[:KEY_CHARACTERS] != key:
            found = "another task" if number < len(self._read) else f"only {len(self._read)} tasks"
            raise ConfigError(
                f"task {number}: the taskset has {found}: rows and worker must come from the same taskset and --args; write "
                "the rows again with `sluice agent verifiers-rows`"
            )
        return self._read[number]

    def _read_to(self, number: int) -> None:
        while len(self._read) <= number and (task := next(self._unread, None)) is not None:
            self._read.append(task)


def rows(taskset: Any, *, environment: str, limit: int | None) -> Iterator[dict[str, object]]:
    """The first `limit` tasks as rows of a data file. Raises DataError for an endless taskset without a limit."""
    if limit is None and not taskset.bounded:
        raise DataError(f"{taskset.config.id}: the taskset is endless; give --limit N")
    named = {"environment": environment} if environment else {}
    for number, task in enumerate(taskset if limit is None else taskset.take(limit)):
        yield {
            "data_source": taskset.config.id,
            "prompt": _chat(task.data, number),
            **named,
            "env_args": {"task": number, "key": task.key[:KEY_CHARACTERS]},
            "reward_model": {"ground_truth": SCORED},
        }


def _chat(data: Any, number: int) -> list[dict[str, str]]:
    """For people, and for the run's bound on prompts; the policy reads what the environment sends it."""
    system = [{"role": "system", "content": data.system_prompt}] if data.system_prompt else []
    return [*system, {"role": "user", "content": data.prompt_text or f"task {number}"}]
