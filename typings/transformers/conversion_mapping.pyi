"""The library takes PreTrainedModel of its own modules."""

from typing import Any

def __getattr__(name: str) -> Any: ...
