"""`data`: prompts, and how many make a step."""

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from sluice.config.schema.section import PositiveInt, Section
from sluice.config.task_names import is_task


class DataConfig(Section):
    """Prompts."""

    train_files: list[str] = Field(
        min_length=1, description=".jsonl or .parquet files, `reasoning-gym:TASK`, `mixadd3:train` or `products:train`"
    )
    val_files: list[str] = Field(default_factory=list, description="held-out prompts for evaluation, same forms")
    train_batch_size: PositiveInt = Field(default=512, description="groups (prompts) a step")
    gen_batch_size: PositiveInt | None = Field(
        default=None,
        description="first wave and cap of groups in flight while a batch is unfilled; default train_batch_size",
    )
    max_prompt_length: PositiveInt = Field(
        default=2048, description="longest prompt in tokens; longer ones are skipped"
    )
    max_response_length: PositiveInt = Field(
        default=20480, description="longest completion in tokens, end token included; of an episode all sampled tokens"
    )
    environment: str = Field(
        default="",
        description="environment of rows that name none; empty: they ask for single answers (docs/environments.md)",
    )
    max_episode_tokens: PositiveInt | None = Field(
        default=None,
        description="longest episode in tokens: prompt, sampled and observed; default max_prompt_length + 2 x "
        "max_response_length",
    )
    shuffle: bool = Field(default=True, description="permute each epoch (a pure function of seed and epoch)")
    sampler: Literal["shuffle", "difficulty"] = Field(
        default="shuffle",
        description="which prompt comes next: that of the order, or the next one that can be expected to have a signal "
        "(docs/prompts.md); needs data.train_files that come again",
    )
    template: Literal["model", "none"] = Field(
        default="model", description="the model's chat template, or the text as it is"
    )

    def problems(self) -> Iterator[str]:
        """Refuses a first wave that cannot fill a batch, and evaluation on prompts that are not held out."""
        if self.gen_batch_size is not None and self.gen_batch_size < self.train_batch_size:
            yield f"gen_batch_size: must be >= data.train_batch_size ({self.train_batch_size}), got {self.gen_batch_size}"
        if self.sampler == "difficulty":
            yield from self._problems_of_difficulty()
        # A reasoning-gym task holds out an eighth of its prompts by itself.
        shared = {name for name in self.train_files if not name.startswith("reasoning-gym:")} & set(self.val_files)
        if shared:
            yield f"val_files: must not share files with train_files, both name {sorted(shared)}"

    def _problems_of_difficulty(self) -> Iterator[str]:
        if endless := [name for name in self.train_files if is_task(name)]:
            yield (
                f"sampler: difficulty draws prompts again, and {endless[0]} makes new ones without end; take files (a fixed "
                "set of its prompts), or data.sampler: shuffle"
            )
        if not self.shuffle:
            yield (
                "sampler: difficulty leaves the order of the prompts, and data.shuffle: false asks for the stored order (a "
                "curriculum); set one of the two: data.shuffle: true, or data.sampler: shuffle"
            )
