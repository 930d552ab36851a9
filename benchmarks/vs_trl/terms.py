"""What both sides agree to, taken from a recipe. Standard library alone: TRL's environment imports it too."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sluice.config.schema import Config


@dataclass(frozen=True, kw_only=True, slots=True)
class Terms:
    """The terms of the race. A batch is what is generated and graded between two looks at new weights."""

    task: str
    """Its name in tasks.py."""
    base: str
    """Folder of the base model."""
    groups_per_batch: int
    groups_per_update: int
    samples_per_group: int
    max_response_tokens: int
    overlong_buffer_tokens: int
    clip_low: float
    clip_high: float
    lr: float
    warmup_batches: int
    betas: tuple[float, float]
    weight_decay: float
    grad_clip: float
    temperature: float
    batches: int
    """Length of the run."""
    save_every_batches: int

    @property
    def updates_per_batch(self) -> int:
        """Optimizer updates a batch."""
        return self.groups_per_batch // self.groups_per_update

    def on_policy(self) -> "Terms":
        """The same work with a generation for every update."""
        ratio = self.updates_per_batch
        return replace(
            self,
            groups_per_batch=self.groups_per_update,
            warmup_batches=self.warmup_batches * ratio,
            batches=self.batches * ratio,
            save_every_batches=self.save_every_batches * ratio,
        )

    def lr_factor(self, update: int) -> float:
        """Share of the learning rate at 0-based `update`: a linear warm-up counted in batches, then constant."""
        return min(1.0, (update // self.updates_per_batch + 1) / max(1, self.warmup_batches))


def terms_of(config: "Config", *, task: str, save_every_batches: int) -> Terms:
    """Reads the terms off a recipe.

    Raises ValueError where TRL has no counterpart for what the recipe asks.
    """
    data, learner, algorithm, overlong = config.data, config.learner, config.algorithm, config.reward.overlong_buffer
    if data.train_batch_size % config.mini_batch_size:
        raise ValueError(
            f"learner.mini_batch_size: must divide data.train_batch_size ({data.train_batch_size}) for TRL, got "
            f"{config.mini_batch_size}"
        )
    if overlong.penalty_factor != 1 or not overlong.enable:
        raise ValueError(
            "reward.overlong_buffer: must be enabled with penalty_factor 1, the only soft punishment TRL ships"
        )
    return Terms(
        task=task,
        base=config.model.path,
        groups_per_batch=data.train_batch_size,
        groups_per_update=config.mini_batch_size,
        samples_per_group=config.rollout.n,
        max_response_tokens=data.max_response_length,
        overlong_buffer_tokens=overlong.len,
        clip_low=algorithm.clip_ratio_low,
        clip_high=algorithm.clip_ratio_high,
        lr=learner.lr,
        warmup_batches=learner.warmup_steps,
        betas=learner.betas,
        weight_decay=learner.weight_decay,
        grad_clip=learner.grad_clip,
        temperature=config.rollout.temperature,
        batches=config.run.total_steps,
        save_every_batches=save_every_batches,
    )


def write_terms(terms: Terms, path: Path) -> None:
    """As JSON, for the other environment."""
    path.write_text(json.dumps(asdict(terms), indent=2) + "\n")


def read_terms(path: Path) -> Terms:
    """The inverse of `write_terms`."""
    fields = json.loads(path.read_text())
    return Terms(**fields | {"betas": tuple(fields["betas"])})
