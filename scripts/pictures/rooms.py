"""docs/rooms.svg: the rooms of the kernel and of each service on floors, computed from the imports.

A room is a folder, or a module that lies beside the folders. A room stands one floor above the highest room that it
imports, so that imports only go down; rooms that import each other share a floor and a dashed frame.
"""

from collections.abc import Iterable, Mapping, Sequence

import grimp

from scripts.pictures.canvas import LINE, NOTE, Canvas, Style

SERVICES = ("coordinator", "learner", "reward", "rollout")
KERNEL = "sluice"

_WIDTH, _MARGIN, _GAP, _ROW = 1000, 18, 12, 30
_NAME = Style(size=12.5, font="mono", anchor="middle")
_TITLE = Style(size=16, bold=True)
_SMALL = Style(size=12.5, colour=NOTE)
_FOLDER, _FILE = "#dbeafe", "#ffffff"

Floor = Sequence[frozenset[str]]
"""The rooms of one floor, in sets of rooms that import each other; most sets have one room."""


def draw() -> str:
    """The picture as SVG."""
    graph = grimp.build_graph(KERNEL, *(f"services.{name}" for name in SERVICES), cache_dir=None)
    canvas = Canvas(
        title="The rooms of Sluice",
        description="Four services beside each other on one kernel. Rooms stand on floors; imports only go down.",
        width=_WIDTH,
    )
    canvas.text(_MARGIN, 30, "four services, each a process: no service imports another, gRPC connects them", _TITLE)
    column = (_WIDTH - 2 * _MARGIN - 3 * _GAP) / len(SERVICES)
    houses = {name: floors(rooms_of(graph, f"services.{name}")) for name in SERVICES}
    folders = {name: _folders(graph, f"services.{name}") for name in SERVICES}
    rows = {name: _rows(houses[name], column) for name in SERVICES}
    height = max(map(len, rows.values())) * _ROW + 44
    for index, name in enumerate(SERVICES):
        x = _MARGIN + index * (column + _GAP)
        canvas.box(x, 46, column, height, fill="#f8fafc")
        canvas.text(x + 12, 70, name, Style(size=15, bold=True), within=column - 24)
        _draw_rows(canvas, rows[name], x=x, width=column, bottom=46 + height, folders=folders[name])
    top = 46 + height + 46
    canvas.text(_MARGIN, top - 14, "kernel: what two services must agree on, and what a user imports", _TITLE)
    kernel = _rows(floors(rooms_of(graph, KERNEL)), _WIDTH - 2 * _MARGIN)
    depth = len(kernel) * _ROW + 44
    canvas.box(_MARGIN, top, _WIDTH - 2 * _MARGIN, depth, fill="#f8fafc")
    canvas.text(_MARGIN + 12, top + 24, KERNEL, Style(size=15, bold=True))
    _draw_rows(
        canvas, kernel, x=_MARGIN, width=_WIDTH - 2 * _MARGIN, bottom=top + depth, folders=_folders(graph, KERNEL)
    )
    return canvas.svg(_draw_legend(canvas, top + depth))


def rooms_of(graph: grimp.ImportGraph, package: str) -> dict[str, set[str]]:
    """Room -> the rooms of the same package that the room imports; entry points (`__main__`) are left out."""
    modules = [module for module in graph.modules if module.startswith(f"{package}.")]
    depth = package.count(".") + 1
    found: dict[str, set[str]] = {module.split(".")[depth]: set() for module in modules}
    for module in modules:
        room = module.split(".")[depth]
        for imported in graph.find_modules_directly_imported_by(module):
            if imported.startswith(f"{package}.") and imported.split(".")[depth] != room:
                found[room].add(imported.split(".")[depth])
    found.pop("__main__", None)
    return found


def floors(imports: Mapping[str, Iterable[str]]) -> list[Floor]:
    """The floors from the lowest up, each with its rooms in the order of their names."""
    knots = _knots(imports)
    level: dict[frozenset[str], int] = {}

    def level_of(knot: frozenset[str]) -> int:
        if knot not in level:
            below = {knots[other] for room in knot for other in imports[room]} - {knot}
            level[knot] = 1 + max(map(level_of, below), default=-1)
        return level[knot]

    for knot in knots.values():
        level_of(knot)
    return [
        sorted((knot for knot in level if level[knot] == number), key=min) for number in range(max(level.values()) + 1)
    ]


def _knots(imports: Mapping[str, Iterable[str]]) -> dict[str, frozenset[str]]:
    """Room -> the rooms that reach the room and that the room reaches, itself included."""
    reached = {room: {room} for room in imports}
    changed = True
    while changed:
        changed = False
        for room, others in imports.items():
            more = set().union(*(reached[other] for other in others)) - reached[room]
            reached[room] |= more
            changed |= bool(more)
    return {room: frozenset(other for other in reached[room] if room in reached[other]) for room in imports}


def _folders(graph: grimp.ImportGraph, package: str) -> set[str]:
    depth = package.count(".") + 1
    return {child.split(".")[depth] for child in graph.find_children(package) if graph.find_children(child)}


def _rows(house: Sequence[Floor], width: float) -> list[list[frozenset[str]]]:
    """The floors from the lowest up as rows that fit `width`: a floor with many rooms has several rows."""
    rows: list[list[frozenset[str]]] = []
    for floor in house:
        rows.append([])
        for knot in floor:
            if rows[-1] and _row_width([*rows[-1], knot]) > width - 16:
                rows.append([])
            rows[-1].append(knot)
    return rows


def _row_width(row: Sequence[frozenset[str]]) -> float:
    return sum(_knot_width(knot) for knot in row) + 6 * (len(row) - 1)


def _knot_width(knot: frozenset[str]) -> float:
    return sum(_room_width(room) for room in knot) + 6 * (len(knot) - 1) + (8 if len(knot) > 1 else 0)


def _room_width(room: str) -> float:
    return _NAME.width(room) + 12


def _draw_rows(
    canvas: Canvas,
    rows: Sequence[Sequence[frozenset[str]]],
    *,
    x: float,
    width: float,
    bottom: float,
    folders: set[str],
) -> None:
    for number, row in enumerate(rows):
        left = x + (width - _row_width(row)) / 2
        y = bottom - 8 - (number + 1) * _ROW
        for knot in row:
            framed = len(knot) > 1
            if framed:
                canvas.box(left, y - 1, _knot_width(knot), 26, fill="none", stroke=NOTE, dashed=True)
            inner = left + (4 if framed else 0)
            for room in sorted(knot):
                fill = _FOLDER if room in folders else _FILE
                canvas.box(
                    inner, y + 2, _room_width(room), 20, fill=fill, stroke="#2563eb" if fill is _FOLDER else LINE
                )
                canvas.text(inner + _room_width(room) / 2, y + 16.5, room, _NAME, within=_room_width(room))
                inner += _room_width(room) + 6
            left += _knot_width(knot) + 6


def _draw_legend(canvas: Canvas, top: float) -> float:
    """Draws the legend below `top`; returns the height of the sheet."""
    canvas.box(_MARGIN, top + 14, 18, 14, fill=_FOLDER, stroke="#2563eb")
    canvas.text(_MARGIN + 26, top + 26, "a folder", _SMALL)
    canvas.box(_MARGIN + 104, top + 14, 18, 14, fill=_FILE)
    canvas.text(_MARGIN + 130, top + 26, "a file", _SMALL)
    canvas.box(_MARGIN + 192, top + 14, 18, 14, fill="none", stroke=NOTE, dashed=True)
    canvas.text(_MARGIN + 218, top + 26, "rooms that import each other", _SMALL)
    canvas.text(
        _WIDTH - _MARGIN,
        top + 26,
        "a room imports only rooms on lower floors, and every service the kernel",
        Style(size=12.5, colour=NOTE, anchor="end"),
    )
    return top + 42
