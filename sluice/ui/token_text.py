"""The tokens of a sample as pieces of text with their log-probabilities and versions, for colouring."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from sluice.ui.shown_text import visible
from sluice.v1 import common_pb2

MOST_TOKENS = 2_000
"""Of one sample on a page; each is an element of the page."""

_FILE = "tokenizer.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenText:
    """Tokens of one sample in order; the lists are parallel."""

    pieces: Sequence[str]
    logprobs: Sequence[float | None]
    """Nats, under the distribution that the token was sampled from; None for a token that was observed."""
    versions: Sequence[int]
    """The version that sampled the token; -1 for a token that was observed."""
    left_out: int
    """Tokens behind the last one shown."""


def find_tokenizer(run_dir: Path, model: str) -> Path | None:
    """The file with the run's tokenizer: of the exported model, else of the model that the run started from."""
    found = (run_dir / "model" / _FILE, Path(model) / _FILE)
    return next((path for path in found if path.is_file()), None)


@lru_cache(maxsize=4)
def load_tokenizer(path: Path) -> Tokenizer:
    """Raises Exception of the library's own for a damaged file."""
    return Tokenizer.from_file(str(path))


def token_text(sample: common_pb2.Sample, tokenizer: Tokenizer, *, most: int = MOST_TOKENS) -> TokenText:
    """The first tokens of a sample. A character of several tokens stands at the last of them."""
    ids = np.frombuffer(sample.token_ids, dtype="<i4")
    values = np.frombuffer(sample.logprobs, dtype="<f4")
    versions = np.full(len(ids), -1, dtype=np.int64)
    for span in sample.spans:
        versions[span.start_token : span.end_token] = span.version.number
    sampled = np.zeros(len(ids), dtype=bool)
    for turn in sample.turns or (common_pb2.Turn(start_token=0, end_token=len(ids)),):
        sampled[turn.start_token : turn.end_token] = True
    stream, many = DecodeStream(skip_special_tokens=False), min(most, len(ids))
    pieces = [visible(stream.step(tokenizer, int(token)) or "") for token in ids[:many]]
    return TokenText(
        pieces=pieces,
        logprobs=[round(float(values[at]), 4) if sampled[at] else None for at in range(many)],
        versions=[int(versions[at]) if sampled[at] else -1 for at in range(many)],
        left_out=len(ids) - many,
    )
