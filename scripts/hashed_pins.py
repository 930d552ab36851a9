"""Prints the pins of lock files with their hashes, as `pip install --require-hashes` takes them. Needs no package.

usage: python scripts/hashed_pins.py LOCK... ; the hashes come from requirements/hashes.lock, which scripts/hashes.sh makes.
A pin without a hash is printed bare: pip then refuses the whole list and names the pin.
"""

import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

HASHES = Path(__file__).parents[1] / "requirements" / "hashes.lock"


def hashes(text: str) -> Mapping[str, str]:
    """The whole entries of a file of hashes, by pin."""
    entries = re.findall(r"^(\S+==\S+) \\\n((?: +--hash=\S+(?: \\)?\n)+)", text, re.MULTILINE)
    return {normal(pin): f"{pin} \\\n{lines.rstrip()}" for pin, lines in entries}


def hashed(pins: Iterable[str], known: Mapping[str, str]) -> list[str]:
    """The entry of each pin."""
    return [known.get(normal(pin), pin) for pin in pins]


def normal(pin: str) -> str:
    """One spelling of a pin, because an index has its own of a name."""
    name, _, version = pin.strip().partition("==")
    return re.sub(r"[-_.]+", "-", name).lower() + "==" + version


def main(locks: list[str]) -> None:
    """Prints the pins of the locks."""
    pins = [pin for lock in locks for pin in Path(lock).read_text(encoding="utf-8").split()]
    sys.stdout.write("\n".join(hashed(pins, hashes(HASHES.read_text(encoding="utf-8")))) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
