"""docs/group-life.svg: the states of a group and the scripts that move a group, as the coordinator's code names them."""

from collections.abc import Sequence

from scripts.pictures.canvas import GOLD, INK, LINE, NOTE, Canvas, Style
from services.coordinator.state.group import TERMINAL, Phase
from services.coordinator.state.ledger import LIVE
from services.coordinator.storage.lua import SCRIPTS

_PATH = ("pending", "in_flight", "scored", "queued", "assigned", "trained")
_NOTES = {
    "pending": ("admitted: waits", "for a rollout"),
    "in_flight": ("a rollout draws", "its samples"),
    "scored": ("graded: waits", "for its verdict"),
    "queued": ("accepted: kept", "in Redis"),
    "assigned": ("in batch k:", "a file, a digest"),
    "trained": ("step k is", "committed"),
}
_MOVES = {"accept": "queued", "assign": "assigned", "commit": "trained"}
"""Script -> the state into which the script moves a group."""
_ENDS = (
    ("open", ("filtered_all_right", "filtered_all_wrong", "filtered_other"), "no signal"),
    ("open", ("failed:REASON",), "cannot be generated or graded"),
    ("open or queued", ("stale", "surplus"), "cannot be trained in time"),
    ("open or queued", ("abandoned",), "the run has ended"),
    ("any", ("rollback",), "the run goes back to a checkpoint"),
)
"""(from which states, the terms, when)."""

_MONO = Style(size=13.5, font="mono", bold=True, anchor="middle")
_SMALL = Style(size=12, colour=NOTE, anchor="middle")
_X, _STEP, _BOX = 18, 168, 118


def names() -> set[str]:
    """Every state in the picture."""
    return {*_PATH, *(term for _, terms, _ in _ENDS for term in terms)}


def scripts() -> set[str]:
    """Every script in the picture."""
    return set(_MOVES)


def names_in_code() -> set[str]:
    """Every state in the code."""
    return {phase.value for phase in Phase} | set(LIVE) | set(TERMINAL) | {"failed:REASON"}


def draw() -> str:
    """The picture as SVG."""
    if names() != names_in_code():
        raise ValueError(f"group_life.py: other states than the code has: {sorted(names() ^ names_in_code())}")
    if not scripts() <= set(SCRIPTS):
        raise ValueError(f"group_life.py: scripts that the store lacks: {sorted(scripts() - set(SCRIPTS))}")
    canvas = Canvas(
        title="The life of a group",
        description="A group goes from pending to trained, or ends under another term of the ledger.",
        width=1000,
    )
    _draw_path(canvas)
    return canvas.svg(_draw_ends(canvas))


def _draw_path(canvas: Canvas) -> None:
    canvas.text(_X + 6, 30, "open", Style(size=15, bold=True))
    canvas.text(_X + 54, 30, "in Redis; the coordinator's memory knows which of the three", Style(size=12, colour=NOTE))
    canvas.box(_X - 3, 42, 2 * _STEP + _BOX + 6, 106, fill="#f8fafc", dashed=True)
    for index, state in enumerate(_PATH):
        x = _X + index * _STEP
        canvas.box(x, 54, _BOX, 74, fill="#fef3c7" if state == "trained" else "#dbeafe", stroke="#2563eb")
        canvas.text(x + _BOX / 2, 76, state, _MONO, within=_BOX)
        for line, note in enumerate(_NOTES[state]):
            canvas.text(x + _BOX / 2, 97 + 17 * line, note, _SMALL, within=_BOX)
        if index:
            canvas.arrow([(x - _STEP + _BOX, 91), (x - 1, 91)], colour=GOLD if index > 2 else INK, width=2)
    _draw_retry(canvas)
    for script, state in _MOVES.items():
        x = _X + _PATH.index(state) * _STEP
        canvas.text(x - (_STEP - _BOX) / 2, 83, script, Style(size=11.5, colour=GOLD, anchor="middle"))
    canvas.text(
        _X + 5 * _STEP + _BOX, 148, "each gold arrow: one script in Redis", Style(size=12, colour=GOLD, anchor="end")
    )


def _draw_retry(canvas: Canvas) -> None:
    start, end = _X + _STEP + _BOX / 2, _X + _BOX / 2
    canvas.arrow([(start, 129), (start, 141), (end, 141), (end, 130)], colour=LINE)
    canvas.text(_X + 6, 168, "a failed attempt: only the missing samples are drawn again", Style(size=12, colour=NOTE))


def _draw_ends(canvas: Canvas) -> float:
    canvas.text(_X + 6, 212, "other ends", Style(size=15, bold=True))
    canvas.text(
        _X + 6,
        230,
        "each a term of the ledger; one script in Redis moves the group and its tokens",
        Style(size=12, colour=NOTE),
    )
    top = 244.0
    for source, terms, when in _ENDS:
        canvas.box(_X - 6, top, 976, 34, fill="#f8fafc")
        canvas.text(_X + 8, top + 22, source, Style(size=13), within=120)
        canvas.arrow([(_X + 124, top + 17), (_X + 158, top + 17)])
        _draw_terms(canvas, terms, x=_X + 168, y=top + 5)
        canvas.text(976, top + 22, when, Style(size=12.5, colour=NOTE, anchor="end"), within=270)
        top += 42
    return top + 8


def _draw_terms(canvas: Canvas, terms: Sequence[str], *, x: float, y: float) -> None:
    style = Style(size=12.5, font="mono", anchor="middle")
    for term in terms:
        width = style.width(term) + 14
        canvas.box(x, y, width, 24, fill="#ffffff")
        canvas.text(x + width / 2, y + 16.5, term, style)
        x += width + 8
