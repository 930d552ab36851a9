"""A base model's folder is made once, whole or not at all, and never over somebody else's files."""

import json

import pytest

from services.learner.base_folder import make_once


def writes(text):
    def write(folder):
        folder.mkdir()
        (folder / "weights").write_text(text)

    return write


def make(out, text="one", *, key="a", force=False):
    return make_once(out, record_name="made.json", record={"key": key}, write=writes(text), force=force)


def test_a_folder_is_made_once_and_has_a_record_of_its_files_and_versions(tmp_path):
    out = tmp_path / "cache" / "base"
    assert make(out)
    assert not make(out, "two")
    assert (out / "weights").read_text() == "one"
    record = json.loads((out / "made.json").read_text())
    assert record["key"] == "a"
    assert record["files"] == {"weights": 3}
    assert {"python", "torch", "transformers"} <= record["versions"].keys()
    assert [path.name for path in out.parent.iterdir()] == ["base"]


@pytest.mark.parametrize("changed", [{"key": "b"}, {"force": True}], ids=str)
def test_another_key_or_force_makes_it_anew(tmp_path, changed):
    make(tmp_path / "base")
    assert make(tmp_path / "base", "two", **changed)
    assert (tmp_path / "base" / "weights").read_text() == "two"
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda out: (out / "weights").write_text("o"),
        lambda out: (out / "weights").unlink(),
        lambda out: (out / "made.json").write_text('{"key": "a"'),
        lambda out: (out / "made.json").write_text("[]"),
        lambda out: (out / "made.json").write_text(""),
    ],
    ids=["a file cut short", "a file missing", "half a record", "another record", "an empty record"],
)
def test_a_folder_that_is_not_as_it_was_written_is_made_anew(tmp_path, damage):
    out = tmp_path / "base"
    make(out)
    damage(out)
    assert make(out)
    assert (out / "weights").read_text() == "one"


def test_a_record_of_an_earlier_version_that_names_no_files_is_trusted(tmp_path):
    out = tmp_path / "base"
    make(out)
    (out / "made.json").write_text('{"key": "a"}')
    assert not make(out)


def test_a_write_that_fails_leaves_nothing_and_the_old_folder_where_it_was(tmp_path):
    def fails(folder):
        writes("half")(folder)
        raise OSError(28, "No space left on device")

    out = tmp_path / "base"
    with pytest.raises(OSError, match="No space left"):
        make_once(out, record_name="made.json", record={"key": "a"}, write=fails)
    assert list(tmp_path.iterdir()) == []

    make(out)
    with pytest.raises(OSError, match="No space left"):
        make_once(out, record_name="made.json", record={"key": "b"}, write=fails)
    assert (out / "weights").read_text() == "one"
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


@pytest.mark.parametrize("is_file", [True, False])
def test_what_somebody_else_made_is_never_replaced(tmp_path, is_file):
    out = tmp_path / "thesis"
    precious = out if is_file else out / "chapter"
    precious.parent.mkdir(exist_ok=True)
    precious.write_text("precious")
    with pytest.raises(ValueError, match="is not a base model made here"):
        make(out, force=True)
    assert precious.read_text() == "precious"
