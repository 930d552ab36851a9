"""JSON without NaN and infinity, which other readers of JSON refuse."""

import math
from collections.abc import Mapping
from typing import Any


def finite(value: Any) -> Any:
    """The same tree with None for every number that JSON cannot write."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
