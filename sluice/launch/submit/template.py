"""Text with fields, `@{name}`, such as the manifests of Kubernetes: neither the shell nor YAML nor Helm uses that mark.

A field that stands alone in its line takes its line's indentation for every line of its value.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from sluice.errors import ConfigError

_FIELD = re.compile(r"@\{([^}\n]*)\}")
_ALONE = re.compile(r"^( *)@\{([a-z_]+)\}$", re.MULTILINE)


def fill(text: str, fields: Mapping[str, str]) -> str:
    """The text with its fields' values. Every field must be known (`check`)."""

    def indented(found: re.Match[str]) -> str:
        lines = fields[found[2]].rstrip("\n").splitlines()
        return "\n".join(found[1] + line if line else "" for line in lines)

    return _FIELD.sub(lambda found: fields[found[1]], _ALONE.sub(indented, text))


def read_template(path: Path, *, known: Iterable[str], needed: Iterable[str]) -> str:
    """The user's own template. Raises ConfigError for a file that cannot be read, a field that is unknown or missing."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--template: {path} cannot be read: {error}") from error
    known, used = sorted(known), fields_of(text)
    listed = ", ".join(f"@{{{name}}}" for name in known)
    problems = [
        f"--template: {path}, line {line}: there is no field @{{{name}}}; there are {listed}"
        for name, line in used.items()
        if name not in known
    ]
    problems += [
        f"--template: {path} has no field @{{{name}}}, without which the text is not of this run; put it where the text of "
        "Sluice's own template has it"
        for name in needed
        if name not in used
    ]
    if problems:
        raise ConfigError("\n".join(problems))
    return text


def fields_of(text: str) -> dict[str, int]:
    """The names of a template's fields, each with the line where it stands first."""
    found: dict[str, int] = {}
    for match in _FIELD.finditer(text):
        found.setdefault(match[1], text.count("\n", 0, match.start()) + 1)
    return found
