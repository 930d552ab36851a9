"""`search`: a tool `search(query)` over a local folder of text, ranked by BM25. A turn without a call ends the episode; a
grader scores it.

Settings: `folder` (must be given; `.txt` and `.md` files at any depth), `results` (3 passages a query), `passage_chars` (800).
The folder is read once a process; it may have MOST_BYTES bytes of text.
"""

import functools
import math
import re
import threading
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from services.reward.environments.builtin.tool_calls import answer_calls, text_in
from sluice.environments import Message, Opening, Reply, Row, Tool

VERSION: Final = "1"

MOST_BYTES: Final = 16 << 20
MOST_FILES: Final = 10_000
MOST_RESULTS: Final = 20
MOST_CHARACTERS: Final = 1_000

_SUFFIXES = (".txt", ".md")
_WORD = re.compile(r"\w+")
_K1, _B = 1.5, 0.75
"""Robertson and Zaragoza, The Probabilistic Relevance Framework (2009), section 3.5: 1.2 to 2, and .5 to .8."""
_READING = threading.Lock()


class Search:
    """The environment."""

    tools = (
        Tool(
            name="search",
            description="Finds passages of the documents about a query.",
            parameters={
                "type": "object",
                "properties": {"query": {"type": "string", "description": "words to look for"}},
                "required": ["query"],
            },
        ),
    )

    def __init__(self, *, folder: str, results: int = 3, passage_chars: int = 800) -> None:
        """Raises ValueError for a folder that is not there, has no text or too much of it."""
        if not 0 < results <= MOST_RESULTS:
            raise ValueError(f"results: must be 1 to {MOST_RESULTS}, got {results}")
        if not 50 <= passage_chars <= 20_000:
            raise ValueError(f"passage_chars: must be 50 to 20000, got {passage_chars}")
        with _READING:
            self._index = _index(str(Path(folder).resolve()), passage_chars)
        self._results = results

    def open(self, row: Row) -> Opening:
        """The row's chat, with the tool."""
        return Opening(tools=self.tools)

    def step(self, message: Message) -> Reply:
        """Looks for what the turn asks."""
        return answer_calls(message, {"search": self._search})

    def _search(self, arguments: Mapping[str, Any]) -> str:
        found = self._index.best(text_in(arguments, "query", most=MOST_CHARACTERS), most=self._results)
        return "\n\n".join(f"[{one.file}]\n{one.text}" for one in found) or "nothing was found"


@dataclass(frozen=True, kw_only=True, slots=True)
class Passage:
    """A piece of a file."""

    file: str
    text: str


class Index:
    """Passages by their words."""

    def __init__(self, passages: Sequence[Passage]) -> None:
        self._passages = passages
        self._postings: dict[str, list[tuple[int, int]]] = defaultdict(list)
        self._lengths: list[int] = []
        for place, passage in enumerate(passages):
            words = Counter(_words(passage.text))
            self._lengths.append(words.total())
            for word, times in words.items():
                self._postings[word].append((place, times))
        self._mean = sum(self._lengths) / len(self._lengths)

    def best(self, query: str, *, most: int) -> list[Passage]:
        """The passages with the highest scores, best first; of equal ones the first in the folder's order."""
        scores: dict[int, float] = defaultdict(float)
        for word in set(_words(query)):
            postings = self._postings.get(word, [])
            rarity = math.log(1 + (len(self._passages) - len(postings) + 0.5) / (len(postings) + 0.5))
            for place, times in postings:
                length = 1 - _B + _B * self._lengths[place] / self._mean
                scores[place] += rarity * times * (_K1 + 1) / (times + _K1 * length)
        ranked = sorted(scores, key=lambda place: (-scores[place], place))
        return [self._passages[place] for place in ranked[:most]]


@functools.lru_cache(maxsize=1)
def _index(folder: str, passage_chars: int) -> Index:
    if not Path(folder).is_dir():
        raise ValueError(f"folder: {folder} is not a folder")
    files = sorted(path for path in Path(folder).rglob("*") if path.suffix in _SUFFIXES and path.is_file())
    size = sum(path.stat().st_size for path in files)
    if len(files) > MOST_FILES or size > MOST_BYTES:
        raise ValueError(
            f"folder: {folder} must have at most {MOST_FILES} files and {MOST_BYTES} bytes of text, "
            f"got {len(files)} and {size}"
        )
    passages = [
        Passage(file=str(path.relative_to(folder)), text=text)
        for path in files
        for text in _pieces(path.read_text(encoding="utf-8", errors="replace"), passage_chars)
    ]
    if not any(_words(passage.text) for passage in passages):
        raise ValueError(f"folder: {folder} has no text in {' or '.join(_SUFFIXES)} files")
    return Index(passages)


def _pieces(text: str, most: int) -> list[str]:
    """Paragraphs, joined up to `most` characters; a longer paragraph is cut."""
    pieces: list[str] = []
    for paragraph in re.split(r"\n\s*\n", text):
        for start in range(0, len(paragraph), most):
            part = paragraph[start : start + most].strip()
            if part and pieces and start == 0 and len(pieces[-1]) + len(part) + 1 <= most:
                pieces[-1] += "\n" + part
            elif part:
                pieces.append(part)
    return pieces


def _words(text: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(text)]
