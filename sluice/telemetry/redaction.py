"""Keeps secrets out of what is printed: values that were named as secret, and passwords within URLs.

The last line of defence: no secret is in the configuration, a command line or a message in the first place.
"""

import json
import re
from urllib.parse import quote

MASK = "[redacted]"
SHORTEST = 8
"""A shorter secret would mask words by chance, and is no secret."""

_IN_URL = re.compile(r"(?<=://)[^/@\s'\"]*:[^/@\s'\"]*(?=@)")
_secrets: set[str] = set()


def never_print(secret: str) -> None:
    """From now on `secret` is masked in everything this process logs, also as JSON and URLs write it."""
    if len(secret) >= SHORTEST:
        _secrets.update((secret, json.dumps(secret)[1:-1], quote(secret, safe="")))


def redacted(text: str) -> str:
    """`text` without named secrets and without user:password of URLs."""
    for secret in _secrets:
        text = text.replace(secret, MASK)
    return _IN_URL.sub(MASK, text) if "://" in text else text
