"""The README's map of the repository: everything on it exists, and everything tracked at the top is on it."""

import re
import subprocess

from tests.unit.docs.pages import ROOT

_ENTRY = re.compile(r"^( *)(\S+)\s{2,}(\S.*)$")


def file_map() -> dict[str, str]:
    """Path -> phrase; folders end in a slash."""
    section = (ROOT / "README.md").read_text(encoding="utf-8").partition("## What is where")[2]
    entries: dict[str, str] = {}
    above = ""
    for line in section.split("```")[1].splitlines():
        if found := _ENTRY.match(line):
            indent, name, phrase = found.groups()
            above = above if indent else name
            entries[above + name if indent else name] = phrase
    return entries


def tracked() -> set[str]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True)
    return set(listed.stdout.splitlines())


def test_every_path_on_the_map_exists_and_is_the_kind_it_says() -> None:
    entries = file_map()
    assert len(entries) > 40
    assert [path for path in entries if not (ROOT / path).exists()] == []
    assert [path for path in entries if (ROOT / path).is_dir() != path.endswith("/")] == []


def test_everything_tracked_at_the_top_is_on_the_map() -> None:
    top = {f"{path.partition('/')[0]}/" if "/" in path else path for path in tracked()}
    # The README need not list itself.
    assert top - {"README.md"} <= set(file_map())


def test_every_folder_of_the_kernel_the_services_the_tests_and_every_page_and_recipe_is_on_the_map() -> None:
    entries = set(file_map())
    for room in ("sluice", "services", "tests", "docs", "recipes"):
        second = {
            path.split("/")[1] + ("/" if path.count("/") > 1 else "")
            for path in tracked()
            if path.startswith(f"{room}/")
        }
        listed = {name for name in second if name.endswith("/") or room in ("docs", "recipes")}
        assert {f"{room}/{name}" for name in listed} <= entries
