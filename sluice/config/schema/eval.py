"""`eval`: evaluation on held-out prompts, and the named sets of `eval.sets`."""

import re
from collections.abc import Iterator
from typing import Annotated, Final

from pydantic import Field

from sluice.config.schema.section import MOST_SAMPLES, NonNegativeInt, PositiveFloat, PositiveInt, Section, Temperature

MOST_SETS: Final = 16
"""Most named sets. Chosen: each adds a dozen metrics, and keeps its first evaluation for good."""

DEFAULT_SET: Final = "default"
"""What people call the set without a name, `data.val_files`; no named set has this name."""

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_]{0,39}")

TopP = Annotated[float, Field(gt=0, le=1)]


class EvalSetConfig(Section):
    """One named set: what it leaves out is as under `eval`."""

    files: list[str] = Field(min_length=1, description="its prompts, in the forms of data.val_files")
    prompts: PositiveInt | None = Field(default=None, description="how many of its prompts, the first ones that fit")
    n: Annotated[int, Field(gt=0, le=MOST_SAMPLES)] | None = Field(default=None, description="samples a prompt")
    temperature: Temperature | None = Field(default=None, description="sampling temperature")
    top_p: TopP | None = Field(default=None, description="nucleus mass")
    greedy: bool | None = Field(default=None, description="also one greedy completion a prompt")
    every_steps: NonNegativeInt | None = Field(
        default=None, description="steps between its evaluations; 0: only before and after"
    )


class EvalConfig(Section):
    """Evaluation on held-out prompts."""

    every_steps: NonNegativeInt = Field(default=10, description="steps between the small evaluations; 0: none")
    prompts: PositiveInt = Field(default=256, description="prompts of the full evaluation before and after")
    n: int = Field(default=8, gt=0, le=MOST_SAMPLES, description="samples a prompt of the full evaluation")
    small_prompts: PositiveInt = Field(default=64, description="prompts of an evaluation in between")
    small_n: int = Field(default=4, gt=0, le=MOST_SAMPLES, description="samples a prompt of an evaluation in between")
    temperature: Temperature = Field(default=1.0, description="sampling temperature of evaluations")
    top_p: TopP = Field(
        default=1.0,
        description="nucleus mass of evaluations: samples come from the fewest most likely tokens with this mass; training "
        "always draws from the whole distribution",
    )
    greedy: bool = Field(default=True, description="also one greedy completion a prompt")
    timeout_s: PositiveFloat = Field(default=600.0, description="longest time a rollout stays pinned")
    sets: dict[str, EvalSetConfig] = Field(
        default_factory=dict,
        description="further sets by name, beside the one of data.val_files: {files, prompts, n, temperature, top_p, "
        "greedy, every_steps}, all but files as under eval where left out; no small evaluations (docs/evaluation.md)",
    )

    def problems(self) -> Iterator[str]:
        """Refuses too many sets, and names that no metric can have."""
        if len(self.sets) > MOST_SETS:
            yield f"sets: must be at most {MOST_SETS}, got {len(self.sets)}"
        for name in self.sets:
            if not _NAME.fullmatch(name) or name == DEFAULT_SET:
                yield (
                    f"sets: a name stands in metrics, it must be 1 to 40 of a-z, 0-9 and _, not begin with _ and not be "
                    f"{DEFAULT_SET!r}, got {name!r:.60}"
                )
