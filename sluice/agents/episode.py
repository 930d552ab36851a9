"""An episode as the gateway gives it, and how it ended. Checked here, because both come from other programs."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from sluice.limits import LARGEST_SCORE, MOST_PARTS, PART_CHARACTERS


class _Form(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)


class Limits(_Form):
    """What the run's budgets leave an episode."""

    turns: PositiveInt
    sampled_tokens: PositiveInt
    """Of all turns."""
    sequence_tokens: PositiveInt
    """The longest chat, prompt and answers."""


class Sampling(_Form):
    """How the run samples."""

    temperature: float = Field(ge=0)


class Episode(_Form):
    """One answer of POST /v1/episodes."""

    key: str = Field(min_length=1, repr=False)
    """The secret that opens this episode alone."""
    episode: str
    model: str
    scores: bool
    env_args: dict[str, object]
    limits: Limits
    sampling: Sampling


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How an episode ended."""

    score: float
    parts: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raises ValueError for a score that no run takes."""
        if not (math.isfinite(self.score) and abs(self.score) <= LARGEST_SCORE):
            raise ValueError(f"the score must be finite and at most {LARGEST_SCORE:g}, got {self.score}")

    def tree(self, *, scores: bool) -> dict[str, object]:
        """The body of POST /v1/episodes/finish; where a grader scores the episode, no score is told."""
        kept = [(name[:PART_CHARACTERS], value) for name, value in self.parts.items() if math.isfinite(value)]
        return {"score": self.score, "parts": dict(kept[:MOST_PARTS])} if scores else {}
