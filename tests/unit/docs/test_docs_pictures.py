"""The pictures of the architecture are what the code gives, and name nothing that the code lacks."""

import pytest

from scripts import api_docs
from scripts.pictures import group_life, rooms, weight_push
from scripts.pictures.__main__ import stale
from scripts.pictures.canvas import Canvas, Style
from tests.unit.docs.pages import ROOT


def test_the_pictures_are_what_the_script_draws() -> None:
    assert stale() == [], "run `python -m scripts.pictures`, look at the pictures and commit them"


def test_every_state_of_a_group_is_in_the_picture_and_no_other() -> None:
    assert group_life.names() == group_life.names_in_code()


def test_every_call_of_a_push_is_an_rpc() -> None:
    services = {service.name: service for file in api_docs.read_protos() for service in file.service}
    rpcs = {(name, method.name) for name, service in services.items() for method in service.method}
    assert weight_push.calls() <= rpcs


def test_the_state_at_the_end_of_a_push_is_one_of_the_protos() -> None:
    enums = {enum.name: enum for file in api_docs.read_protos() for enum in file.enum_type}
    states = {value.name.removeprefix("SERVICE_STATE_") for value in enums["ServiceState"].value}
    assert weight_push.STATE in states


def test_a_room_stands_above_the_rooms_that_it_imports() -> None:
    house = rooms.floors({"app": {"api", "state"}, "api": {"state"}, "state": set()})
    assert house == [[frozenset({"state"})], [frozenset({"api"})], [frozenset({"app"})]]


def test_rooms_that_import_each_other_share_a_floor() -> None:
    house = rooms.floors({"a": {"b"}, "b": {"a", "c"}, "c": set()})
    assert house == [[frozenset({"c"})], [frozenset({"a", "b"})]]


def test_a_canvas_refuses_text_that_meets_other_text_or_leaves_its_box() -> None:
    canvas = Canvas(title="t", description="d", width=200)
    canvas.text(10, 20, "first", Style())
    with pytest.raises(ValueError, match="meets"):
        canvas.text(12, 24, "second", Style())
    with pytest.raises(ValueError, match="needs"):
        canvas.text(10, 60, "far too long", Style(), within=20)
    with pytest.raises(ValueError, match="leaves the sheet"):
        canvas.text(180, 60, "outside", Style())


@pytest.mark.parametrize("name", ["rooms.svg", "group-life.svg", "weight-push.svg", "path.svg"])
def test_a_picture_is_opaque_so_that_it_reads_on_a_dark_page(name: str) -> None:
    assert 'fill="#ffffff"/>' in (ROOT / "docs" / name).read_text(encoding="utf-8")
