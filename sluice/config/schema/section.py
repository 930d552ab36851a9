"""What the sections of the schema are made of: the base class and the numbers with a bound."""

from collections.abc import Iterator
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

PositiveInt = Annotated[int, Field(gt=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]


class Section(BaseModel):
    """Base of every part: frozen, no unknown keys, defaults validated too, values that fit together."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    def problems(self) -> Iterator[str]:
        """What keys of this section cannot be together, a line each: `key: the rule, the value; the fix`.

        The key is named as seen from this section; sluice/config/problems.py puts the section's name in front.
        """
        return iter(())

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if lines := list(self.problems()):
            raise ValueError("\n".join(lines))
        return self
