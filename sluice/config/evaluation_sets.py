"""The evaluation sets of a run with all of their settings: the default one without a name, then those of `eval.sets`."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sluice.config.schema import Config
from sluice.config.schema.eval import DEFAULT_SET
from sluice.config.task_names import is_task
from sluice.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationSet:
    """What one set evaluates, and how."""

    name: str
    """Empty for the default set, which is `data.val_files` with the settings under `eval`."""
    files: tuple[str, ...]
    prompts: int
    n: int
    small_prompts: int
    """Prompts of an evaluation in between."""
    small_n: int
    """Samples a prompt of an evaluation in between."""
    temperature: float
    top_p: float
    greedy: bool
    every_steps: int

    @property
    def label(self) -> str:
        """What people call the set."""
        return self.name or DEFAULT_SET


def evaluation_sets(config: Config) -> list[EvaluationSet]:
    """The sets in the order in which they are evaluated; empty for a run that evaluates nothing."""
    return list(_sets(config))


def _sets(config: Config) -> Iterator[EvaluationSet]:
    shared = config.eval
    if config.data.val_files:
        yield EvaluationSet(
            name="",
            files=tuple(config.data.val_files),
            prompts=shared.prompts,
            n=shared.n,
            small_prompts=shared.small_prompts,
            small_n=shared.small_n,
            temperature=shared.temperature,
            top_p=shared.top_p,
            greedy=shared.greedy,
            every_steps=shared.every_steps,
        )
    for name, own in shared.sets.items():
        prompts, n = own.prompts or shared.prompts, own.n or shared.n
        yield EvaluationSet(
            name=name,
            files=tuple(own.files),
            prompts=prompts,
            n=n,
            small_prompts=prompts,
            small_n=n,
            temperature=own.temperature or shared.temperature,
            top_p=own.top_p or shared.top_p,
            greedy=shared.greedy if own.greedy is None else own.greedy,
            every_steps=shared.every_steps if own.every_steps is None else own.every_steps,
        )


def check_files(config: Config) -> None:
    """Raises ConfigError with a line for each file of a named set that is not there, as seen from the working directory."""
    problems = [
        f"eval.sets.{name}.files: no such file: {file} (looked for {Path(file).expanduser().absolute()})"
        for name, own in config.eval.sets.items()
        for file in own.files
        if not is_task(file) and not Path(file).expanduser().is_file()
    ]
    if problems:
        raise ConfigError("\n".join(problems))
