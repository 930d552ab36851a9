"""The tokens of a sample as pieces of text with what is known of each, for colouring."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from sluice.run_dir.token_figures import TokenFigures
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
    ratios: Sequence[float | None] | None
    """The probability in the update that trained the token over the rollout's; None for a token that was not trained. None
    for all: the run did not keep the figures of this group's tokens."""
    entropies: Sequence[float | None] | None
    """Nats, of the distribution in that update; None likewise."""
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


def group_text(
    samples: Iterable[common_pb2.Sample], tokenizer: Tokenizer, figures: TokenFigures | None
) -> list[TokenText]:
    """The samples of one group, in order from the first one; figures: of the group, where they were kept."""
    texts, reached = [], 0
    for sample in samples:
        sampled = _sampled(sample)
        count = int(sampled.sum())
        of_sample = None
        here = slice(reached, reached + count)
        if (
            figures is not None and len(figures.entropies[here]) == count
        ):  # else the line is damaged, or of another group
            of_sample = np.full((2, len(sampled)), np.nan)
            with np.errstate(over="ignore"):
                of_sample[:, sampled] = np.exp(figures.log_ratios[here].astype(np.float64)), figures.entropies[here]
        texts.append(token_text(sample, tokenizer, figures=of_sample))
        reached += count
    return texts


def token_text(
    sample: common_pb2.Sample, tokenizer: Tokenizer, *, figures: np.ndarray | None = None, most: int = MOST_TOKENS
) -> TokenText:
    """The first tokens of a sample. A character of several tokens stands at the last of them.

    figures: float64[2, tokens], ratios and entropies, NaN where there is none.
    """
    ids = np.frombuffer(sample.token_ids, dtype="<i4")
    values = np.frombuffer(sample.logprobs, dtype="<f4")
    versions = np.full(len(ids), -1, dtype=np.int64)
    for span in sample.spans:
        versions[span.start_token : span.end_token] = span.version.number
    sampled = _sampled(sample)
    stream, many = DecodeStream(skip_special_tokens=False), min(most, len(ids))
    pieces = [visible(stream.step(tokenizer, int(token)) or "") for token in ids[:many]]
    return TokenText(
        pieces=pieces,
        logprobs=[round(float(values[at]), 4) if sampled[at] else None for at in range(many)],
        versions=[int(versions[at]) if sampled[at] else -1 for at in range(many)],
        ratios=None if figures is None else _known(figures[0, :many]),
        entropies=None if figures is None else _known(figures[1, :many]),
        left_out=len(ids) - many,
    )


def _sampled(sample: common_pb2.Sample) -> np.ndarray:
    """bool[tokens]: which tokens the policy sampled."""
    count = len(sample.token_ids) // 4
    sampled = np.zeros(count, dtype=bool)
    for turn in sample.turns or (common_pb2.Turn(start_token=0, end_token=count),):
        sampled[turn.start_token : turn.end_token] = True
    return sampled


def _known(values: np.ndarray) -> list[float | None]:
    return [float(f"{value:.5g}") if np.isfinite(value) else None for value in values.tolist()]
