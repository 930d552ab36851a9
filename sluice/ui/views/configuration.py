"""The resolved configuration: against the defaults, and against another run."""

from nicegui import ui

from sluice.config.schema import Config
from sluice.errors import SluiceError
from sluice.ui.page import Page
from sluice.ui.parts import box, chip, link, panel, plain_table, said
from sluice.ui.settings import Setting, settings

SHOWN = {"changed": "what differs", "all": "all keys"}


async def show(page: Page) -> None:
    """The view."""
    config = page.run.config()
    other: Config | None = None
    if page.over:
        try:
            other = page.over[0].config()
        except SluiceError as error:
            said("div", str(error), "note-line warn")
    rows = settings(config, other=other)
    wanted = page.query.get("show", "changed")
    wanted = wanted if wanted in SHOWN else "changed"
    word = page.query.get("word", "")[:80]
    with panel("Configuration", note=f"{len(rows)} keys, {sum(one.differs for one in rows)} differ"):
        with box(classes="filters"):
            for name, words in SHOWN.items():
                query = {"show": name} if name != "changed" else {}
                link(words, page.address("configuration", query), "quiet-button").props(
                    f"aria-pressed={'true' if name == wanted else 'false'}"
                )
            with box("label", "field").style("width: 13.75rem"):
                said("span", "key or value has")
                field = ui.input(value=word).props(
                    'dense outlined debounce=250 clearable aria-label="key or value has"'
                )
        said("div", _lead(page, other), "soft small").style("margin: 8px 0")
        content = box()

    def draw() -> None:
        text = (field.value or "").lower()
        shown = [
            one for one in rows if (wanted == "all" or one.differs) and (text in one.key or text in one.value.lower())
        ]
        content.clear()
        with content:
            _table(page, shown, other)
        query = ({"show": wanted} if wanted != "changed" else {}) | ({"word": text} if text else {})
        page.keep(query)

    field.on_value_change(draw)
    draw()


def _lead(page: Page, other: Config | None) -> str:
    if other is not None:
        return f"Compared with {page.over[0].name}; marked are the keys whose values differ between the two."
    return "Compared with the defaults; with several runs, lay one over this one to compare the two."


def _table(page: Page, rows: list[Setting], other: Config | None) -> None:
    if not rows:
        said("div", "No key fits." if other is None else "The two runs have the same configuration.", "soft")
        return
    against = page.over[0].name if other is not None else "default"
    all_differ = all(one.differs for one in rows)
    departing = {line.partition(":")[0] for line in page.run.config().departures}

    def key(one: Setting) -> None:
        said("span", one.key, "mono key")
        if one.differs and not all_differ:
            said("span", " ")
            chip("differs", "info")
        if one.key in departing:
            said("span", " ")
            chip("departs from DAPO", "warn")

    plain_table(
        ("key", page.run.name, against, "what it says"),
        [
            (
                lambda one=one: key(one),
                lambda one=one: said("span", one.value, "mono"),
                lambda one=one: said("span", one.against, "mono soft"),
                one.description,
            )
            for one in rows
        ],
        is_wide=True,
    )
