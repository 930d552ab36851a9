"""Whatever a model writes becomes text that no browser obeys and every encoder takes."""

from hypothesis import given
from hypothesis import strategies as st

from sluice.ui.shown_text import MOST_CHARACTERS, short, shown, visible


def test_controls_and_changes_of_direction_are_made_visible_and_markup_stays_text() -> None:
    assert visible("<script>alert(1)</script>") == "<script>alert(1)</script>"
    assert visible("a\x1b[31m\x00b\u202ec\u2066d") == "a␛[31m␀b⟨U+202E⟩c⟨U+2066⟩d"
    assert visible("one\ntwo\tthree") == "one\ntwo\tthree"
    assert visible("half \ud800 pair") == "half � pair"
    assert visible("שלום 😀") == "שלום 😀"


def test_a_long_text_is_cut_and_says_by_how_much() -> None:
    piece = shown("x" * 1_000_000)
    assert len(piece.text) == MOST_CHARACTERS
    assert piece.note == "the first 20,000 characters; 980,000 more are not shown"
    assert shown("x").note == ""
    assert short("line\none " * 400, most=20) == "line one line one l…"


@given(st.text(alphabet=st.characters()))
def test_any_text_can_be_sent(text: str) -> None:
    visible(text).encode()
