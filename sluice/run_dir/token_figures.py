"""What the learner computed for the tokens of one group of a step: the group that is kept for people to look at.

RUN/sample_tokens.jsonl has such a group a step, thinned as samples.jsonl is: one JSON object a line, `{"step", "group_id",
"group", "log_ratios", "entropies"}`. `group` is the group as batches/ stores it, the other two are float16, little-endian, all
three in base64; the figures are null where the learner told none. Knows nothing of the wire.
"""

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from sluice.errors import InvalidRequest

SAMPLE_TOKENS_FILE = "sample_tokens.jsonl"

_FLOAT16 = np.dtype("<f2")


def example_of(step: int, groups: int) -> int:
    """The place in the batch of step `step`, of so many groups, of the group that is kept for people."""
    return step % groups


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenFigures:
    """Of the A tokens that the policy sampled in one group, sample by sample."""

    group_id: str
    log_ratios: np.ndarray
    """float[A]: log of the token's probability in the update that trained the token over its probability in the rollout;
    NaN for a token that was not trained."""
    entropies: np.ndarray
    """float[A], nats, of the distribution in that update; NaN likewise."""


def pack_figures(values: np.ndarray) -> bytes:
    """Any float[A] -> 2 * A bytes; values beyond float16 become its largest, those that are not finite NaN."""
    largest = float(np.finfo(_FLOAT16).max)
    finite = np.where(np.isfinite(values), np.clip(values, -largest, largest), np.nan)
    return finite.astype(_FLOAT16).tobytes()


def unpack_figures(data: bytes, *, field: str) -> np.ndarray:
    """2 * A bytes -> read-only float16[A], each finite or NaN. Raises InvalidRequest."""
    if len(data) % _FLOAT16.itemsize:
        raise InvalidRequest(f"{field}: must be a multiple of {_FLOAT16.itemsize} bytes, got {len(data)}")
    values = np.frombuffer(data, dtype=_FLOAT16)
    if np.isinf(values).any():
        raise InvalidRequest(f"{field}: must be finite, or NaN for a token that was not trained; got an infinite value")
    return values


def line_of(step: int, group_id: str, *, payload: bytes, figures: TokenFigures | None) -> dict[str, Any]:
    """A line of the file for a stored group."""
    arrays = ("log_ratios", "entropies")
    packed = {name: None if figures is None else _text(pack_figures(getattr(figures, name))) for name in arrays}
    return {"step": step, "group_id": group_id, "group": _text(payload), **packed}


def read_line(line: Mapping[str, Any]) -> tuple[bytes, TokenFigures | None]:
    """The stored group of a line, and the figures of its tokens. Raises ValueError, KeyError, TypeError for another line."""
    payload = base64.b64decode(line["group"], validate=True)
    if line["log_ratios"] is None or line["entropies"] is None:
        return payload, None
    log_ratios, entropies = (
        unpack_figures(base64.b64decode(line[name], validate=True), field=name) for name in ("log_ratios", "entropies")
    )
    return payload, TokenFigures(group_id=line["group_id"], log_ratios=log_ratios, entropies=entropies)


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
