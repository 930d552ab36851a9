"""Sluice: DAPO training of language models as an asynchronous, disaggregated service system.

Importing this package pulls in neither torch nor vllm nor transformers.
"""

__version__ = "0.1.0"

PROTOCOL_VERSION = 1
"""What a service states when it registers; the coordinator refuses any other."""
