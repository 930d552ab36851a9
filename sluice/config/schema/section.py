"""What the sections of the schema are made of: the base class and the numbers with a bound."""

import os
import re
from collections.abc import Iterator
from typing import Annotated, Any, Final, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

PositiveInt = Annotated[int, Field(gt=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
MOST_PORT: Final = 65535
Port = Annotated[int, Field(ge=0, le=MOST_PORT)]
MOST_REPLICAS: Final = 10_000
"""Processes of one kind. Chosen: more than any cluster has, and a typing error ends before it starts them."""
Replicas = Annotated[int, Field(ge=0, le=MOST_REPLICAS)]
Temperature = Annotated[float, Field(ge=0.01)]
"""Below, engines divide logits by almost nothing, and rollouts refuse the call."""

MOST_SAMPLES: Final = 4096
"""Most samples of a prompt: what a rollout draws in one call."""

_LARGEST_INT: Final = 2**63 - 1
"""Protobuf's int64, in which every number travels."""

_LONGEST_WAIT_S: Final = 1e9
"""30 years: threads, timers and the wires take no wait of more than some hundred years."""

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
"""What no path, name or address has; a command of several lines has line feeds and tabs."""


def _path(text: str) -> str:
    if not text.strip():
        raise ValueError(f"must not be blank, got {text!r}")
    if "\n" in text:
        raise ValueError(f"must be one line, got {text!r:.60}")
    return os.path.expanduser(text)


PathText = Annotated[str, AfterValidator(_path)]
"""A path of this machine; `~` is the home of the user who reads the recipe."""


class Section(BaseModel):
    """Base of every section: frozen, no unknown keys, defaults validated too, values that fit together."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    def problems(self) -> Iterator[str]:
        """Which keys of this section contradict each other, a line each: `key: the rule, the value; the fix`.

        The key is named without the section's name, which sluice/config/problems.py puts in front.
        """
        return iter(())

    @field_validator("*", mode="after")
    @classmethod
    def _is_what_the_system_takes(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, int) and value > _LARGEST_INT:
            raise ValueError(f"must be <= {_LARGEST_INT}, got {value}")
        is_wait = str(info.field_name).endswith("_s") and not str(info.field_name).endswith("_per_s")
        if is_wait and isinstance(value, int | float) and value > _LONGEST_WAIT_S:
            raise ValueError(f"must be <= {_LONGEST_WAIT_S:g} (30 years), got {value:g}")
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str) and _CONTROL.search(text):
                raise ValueError(f"must have no control characters, got {text!r:.60}")
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if lines := list(self.problems()):
            raise ValueError("\n".join(lines))
        return self
