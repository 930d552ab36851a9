"""Masks secrets in logs and messages: values that were declared secret, and passwords within URLs.

This is the last line of defence: no secret is in the configuration, a command line or a message in the first place.
"""

import json
import re
from urllib.parse import quote

MASK = "[redacted]"
SHORTEST = 8
"""Shorter values are not masked, because a short value also stands in ordinary words."""

_IN_URL = re.compile(r"(?<=://)[^/@\s'\"]*:[^/@\s'\"]*(?=@)")
_secrets: set[str] = set()


def never_print(secret: str) -> None:
    """From now on masks `secret` in everything that this process logs, also in its escaped forms of JSON and URLs."""
    if len(secret) >= SHORTEST:
        _secrets.update((secret, json.dumps(secret)[1:-1], quote(secret, safe="")))


def redacted(text: str) -> str:
    """`text` with declared secrets and the user:password of URLs masked."""
    for secret in _secrets:
        text = text.replace(secret, MASK)
    return _IN_URL.sub(MASK, text) if "://" in text else text
