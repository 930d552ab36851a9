"""The map of the repository on docs/architecture.md: everything on the map exists, every room and page is on it."""

import re
import subprocess

from tests.unit.docs.pages import ROOT

_ENTRY = re.compile(r"^( *)(\S+)\s{2,}(\S.*)$")


def file_map() -> dict[str, str]:
    """Path -> phrase; folders end in a slash. An entry lies in the folder above it that is indented less."""
    section = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").partition("## The map")[2]
    entries: dict[str, str] = {}
    above: list[tuple[int, str]] = []
    for line in section.split("```")[1].splitlines():
        if found := _ENTRY.match(line):
            indent, name, phrase = len(found[1]), found[2], found[3]
            above = [(outer, path) for outer, path in above if outer < indent]
            path = (above[-1][1] if above else "") + name
            above.append((indent, path))
            entries[path] = phrase
    return entries


def tracked() -> set[str]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True)
    return set(listed.stdout.splitlines())


def below(folder: str) -> set[str]:
    """What lies directly below a folder; folders end in a slash."""
    depth = folder.count("/")
    inside = (path for path in tracked() if path.startswith(folder))
    return {"/".join(path.split("/")[: depth + 1]) + ("/" if path.count("/") > depth else "") for path in inside}


def test_every_path_on_the_map_exists_and_is_the_kind_it_says() -> None:
    entries = file_map()
    assert len(entries) > 80
    assert [path for path in entries if not (ROOT / path).exists()] == []
    assert [path for path in entries if (ROOT / path).is_dir() != path.endswith("/")] == []


def test_everything_tracked_at_the_top_is_on_the_map() -> None:
    top = {f"{path.partition('/')[0]}/" if "/" in path else path for path in tracked()}
    assert top <= set(file_map())


def test_every_folder_of_the_kernel_the_services_and_the_tests_and_every_page_and_recipe_is_on_the_map() -> None:
    entries = set(file_map())
    for room in ("sluice/", "services/", "tests/", "docs/", "recipes/"):
        listed = {path for path in below(room) if path.endswith("/") or room in ("docs/", "recipes/")}
        assert listed <= entries


def test_every_room_of_a_service_is_on_the_map() -> None:
    rooms = {path for service in below("services/") for path in below(service) if path.endswith("/")}
    assert rooms <= set(file_map())


def test_the_readme_is_short_enough_to_be_read() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150
