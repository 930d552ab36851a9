"""Sluice: DAPO training of language models as an asynchronous, disaggregated service system.

Importing this package pulls in neither torch nor vllm nor transformers, nor gRPC before `Client` is used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sluice.client import AsyncClient, Client

__all__ = ["PROTOCOL_VERSION", "AsyncClient", "Client", "__version__"]

__version__ = "0.1.0"

PROTOCOL_VERSION = 1
"""The version that a service states when the service registers; the coordinator refuses any other version."""


def __getattr__(name: str) -> Any:
    if name in ("AsyncClient", "Client"):
        return getattr(importlib.import_module("sluice.client"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
