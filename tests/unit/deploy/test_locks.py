"""Every pinned file is known by its hash, but for what no index states one for."""

from pathlib import Path

import pytest

from scripts.hashed_pins import HASHES, hashed, hashes, main, normal

LOCKS = sorted(path for path in HASHES.parent.glob("*.lock") if path != HASHES)
KNOWN = hashes(HASHES.read_text())


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_every_pin_has_hashes(lock: Path) -> None:
    pins = lock.read_text().split()
    assert pins
    assert [pin for pin in pins if normal(pin) not in KNOWN and not pin.startswith("torch==")] == []


def test_no_hash_is_of_a_version_that_is_not_pinned() -> None:
    pinned = {normal(pin) for lock in LOCKS for pin in lock.read_text().split()}
    assert KNOWN.keys() <= pinned, "run `make hashes`"


def test_pins_are_found_under_any_spelling_and_one_without_a_hash_stays_bare() -> None:
    known = hashes(
        "latex2sympy2-extended==1.11.0 \\\n    --hash=sha256:aa \\\n    --hash=sha256:bb\nmako==1.4 \\\n    --hash=sha256:cc\n"
    )
    assert hashed(["latex2sympy2_extended==1.11.0", "Mako==1.4", "Mako==1.5"], known) == [
        "latex2sympy2-extended==1.11.0 \\\n    --hash=sha256:aa \\\n    --hash=sha256:bb",
        "mako==1.4 \\\n    --hash=sha256:cc",
        "Mako==1.5",
    ]


def test_the_program_prints_what_pip_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.lock").write_text("six==1.17.0\n")
    main([str(tmp_path / "a.lock")])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "six==1.17.0 \\"
    assert len(lines) > 2
    assert all(line.lstrip().startswith("--hash=sha256:") for line in lines[1:])
