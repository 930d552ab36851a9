"""Masks secrets in logs and messages: values that were declared secret, and passwords within URLs.

Masking is the last line of defence: no secret is in the configuration, a command line or a message in the first place.
"""

import json
import re
from urllib.parse import quote

MASK = "[redacted]"
SHORTEST = 8
"""Shorter values are not masked, because a short value also stands in ordinary words."""

_USER_IN_URL = re.compile(
    r"(?<=://)[^/@\s'\"]++(?=@)"
)  # possessive, so that the time grows with the text and not faster
_secrets: set[str] = set()


def never_print(secret: str) -> None:
    """From now on masks `secret` in everything that this process logs, also in its escaped forms of JSON and URLs."""
    if len(secret) >= SHORTEST:
        _secrets.update((secret, json.dumps(secret)[1:-1], quote(secret, safe="")))


def redacted(text: str) -> str:
    """`text` with declared secrets and the user:password of URLs masked."""
    for secret in _secrets:
        text = text.replace(secret, MASK)
    return _USER_IN_URL.sub(_without_password, text) if "://" in text else text


def _without_password(user: "re.Match[str]") -> str:
    return MASK if ":" in user[0] else user[0]
