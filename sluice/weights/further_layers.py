"""Layers behind a model's last: DeepSeek-V3, GLM-4.5 and others store some that predict further tokens at once (MTP).

transformers has no place for them, so they are neither trained nor pushed, and an engine that samples one token at a time
does not use them.
"""

import re

_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")


def is_further(tensor: str, *, layers: float) -> bool:
    """Whether a tensor of a folder's files belongs to a layer behind the `layers` layers of config.json."""
    found = _LAYER.search(tensor)
    return found is not None and int(found[1]) >= layers
