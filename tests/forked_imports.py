"""What the server of tests/forked.py imports once for all the processes that it forks."""

import transformers.models.auto.modeling_auto
import transformers.models.qwen3.modeling_qwen3  # noqa: F401
