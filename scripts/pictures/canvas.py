"""A white sheet for boxes, text and arrows, as SVG. Refuses text that does not fit its box or that meets other text.

The sheet is opaque, so that a picture reads alike on a light and on a dark page. The width of a text is estimated for the
widest font of the list, so a viewer with another font draws a narrower text.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Literal

INK, NOTE, LINE, GOLD = "#0f172a", "#475569", "#64748b", "#b45309"

_SANS = "'Helvetica Neue', Helvetica, Arial, 'DejaVu Sans', sans-serif"
_MONO = "Menlo, Consolas, 'DejaVu Sans Mono', monospace"
_WIDTH_OF = {"mono": 0.62, "sans": 0.60}
"""Width of a character, in font sizes: DejaVu Sans Mono has .602; ordinary prose in DejaVu Sans averages .57."""

Font = Literal["mono", "sans"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Style:
    """How text looks."""

    size: float = 13.0
    font: Font = "sans"
    colour: str = INK
    bold: bool = False
    anchor: Literal["start", "middle", "end"] = "start"

    def width(self, text: str) -> float:
        """The estimated width of `text`, at least what a viewer draws."""
        return len(text) * self.size * _WIDTH_OF[self.font] * (1.06 if self.bold else 1.0)


@dataclass(kw_only=True, slots=True)
class Canvas:
    """One sheet; coordinates are pixels, y grows downwards."""

    title: str
    description: str
    width: int
    _parts: list[str] = field(default_factory=list)
    _texts: list[tuple[str, float, float, float, float]] = field(default_factory=list)
    """(text, left, right, top, bottom) of every text."""

    def box(
        self, x: float, y: float, width: float, height: float, *, fill: str, stroke: str = LINE, dashed: bool = False
    ) -> None:
        """A rectangle with round corners."""
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        self._parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="7" fill="{fill}" stroke="{stroke}"'
            f' stroke-width="1.3"{dash}/>'
        )

    def text(self, x: float, y: float, text: str, style: Style, *, within: float | None = None) -> None:
        """One line whose baseline is at `y`; raises ValueError when the line is wider than `within`."""
        if within is not None and style.width(text) > within:
            raise ValueError(f"{self.title}: {text!r} needs {style.width(text):.0f} px and has {within:.0f}")
        left = x - style.width(text) * {"start": 0.0, "middle": 0.5, "end": 1.0}[style.anchor]
        self._place(text, left, left + style.width(text), y - 0.8 * style.size, y + 0.2 * style.size)
        weight = ' font-weight="600"' if style.bold else ""
        family = _MONO if style.font == "mono" else _SANS
        self._parts.append(
            f'<text x="{x:g}" y="{y:g}" font-family="{family}" font-size="{style.size:g}"{weight}'
            f' fill="{style.colour}" text-anchor="{style.anchor}">{escape(text, quote=False)}</text>'
        )

    def _place(self, text: str, left: float, right: float, top: float, bottom: float) -> None:
        if left < 0 or right > self.width:
            raise ValueError(f"{self.title}: {text!r} leaves the sheet")
        for other, other_left, other_right, other_top, other_bottom in self._texts:
            if left < other_right and other_left < right and top < other_bottom and other_top < bottom:
                raise ValueError(f"{self.title}: {text!r} meets {other!r}")
        self._texts.append((text, left, right, top, bottom))

    def arrow(
        self, points: Sequence[tuple[float, float]], *, colour: str = INK, width: float = 1.6, dashed: bool = False
    ) -> None:
        """A line through `points` with a head at its end."""
        path = " ".join(f"{'L' if index else 'M'}{x:g} {y:g}" for index, (x, y) in enumerate(points))
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        self._parts.append(
            f'<path d="{path}" stroke="{colour}" stroke-width="{width:g}" fill="none"{dash}'
            f' marker-end="url(#{_head(colour)})"/>'
        )

    def line(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """A thin grey line without a head."""
        (x1, y1), (x2, y2) = start, end
        self._parts.append(
            f'<path d="M{x1:g} {y1:g} L{x2:g} {y2:g}" stroke="{LINE}" stroke-width="1" stroke-dasharray="2 4"/>'
        )

    def svg(self, height: float) -> str:
        """The sheet, cut at `height`."""
        heads = "\n".join(_marker(colour) for colour in (INK, LINE, GOLD))
        return "\n".join(
            (
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {height:g}" width="{self.width}"'
                f' height="{height:g}" role="img">',
                f"<title>{escape(self.title)}</title>",
                f"<desc>{escape(self.description)}</desc>",
                f"<defs>\n{heads}\n</defs>",
                f'<rect width="{self.width}" height="{height:g}" rx="10" fill="#ffffff"/>',
                *self._parts,
                "</svg>\n",
            )
        )


def _head(colour: str) -> str:
    return f"head-{colour.removeprefix('#')}"


def _marker(colour: str) -> str:
    return (
        f'<marker id="{_head(colour)}" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7"'
        f' orient="auto"><path d="M0 0 10 5 0 10z" fill="{colour}"/></marker>'
    )
