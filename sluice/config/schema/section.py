"""What the sections of the schema are made of: the base class and the numbers with a bound."""

import os
from collections.abc import Iterator
from typing import Annotated, Any, Final, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

PositiveInt = Annotated[int, Field(gt=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]

_LARGEST_INT: Final = 2**63 - 1
"""Protobuf's int64, in which every number travels."""

PathText = Annotated[str, AfterValidator(os.path.expanduser)]
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
    def _is_no_larger_than_a_wire_takes(cls, value: Any) -> Any:
        if isinstance(value, int) and value > _LARGEST_INT:
            raise ValueError(f"must be <= {_LARGEST_INT}, got {value}")
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if lines := list(self.problems()):
            raise ValueError("\n".join(lines))
        return self
