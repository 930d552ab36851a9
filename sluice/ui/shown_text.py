"""Text of a run as text that a browser can show: what a model writes may be anything.

Markup needs no care, because texts reach the page as text nodes. Control characters are made visible, and so are the characters
that turn the direction of what follows them; halves of surrogate pairs, which no encoder takes, are replaced.
"""

from dataclasses import dataclass

from sluice.report.figures import printable

MOST_CHARACTERS = 20_000
"""Of one text on a page; a longer text is cut, and says so."""

_DIRECTIONS = {
    code: f"⟨U+{code:04X}⟩" for code in (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
}
_LINES = {0x2028: "⏎", 0x2029: "⏎"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Shown:
    """A text, and how much of it is left out."""

    text: str
    left_out: int = 0

    @property
    def note(self) -> str:
        """Says what is left out; empty where nothing is."""
        return (
            f"the first {MOST_CHARACTERS:,} characters; {self.left_out:,} more are not shown" if self.left_out else ""
        )


def shown(text: str, *, most: int = MOST_CHARACTERS) -> Shown:
    """The beginning of a text."""
    return Shown(text=visible(text[:most]), left_out=max(0, len(text) - most))


def visible(text: str) -> str:
    """A text without a character that a browser would obey or an encoder refuse."""
    whole = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return printable(whole).translate(_DIRECTIONS).translate(_LINES)


def short(text: str, *, most: int = 120) -> str:
    """One line of at most `most` characters."""
    line = " ".join(visible(text[: 4 * most]).split())
    return line if len(line) <= most and len(text) <= 4 * most else line[: most - 1] + "…"
