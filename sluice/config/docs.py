"""`python -m sluice.config.docs > docs/configuration.md`: every key of the schema with its default and meaning.

A test keeps the page equal to the output of this module. Meanings are the schema's own descriptions.
"""

import json
import sys
from collections.abc import Iterator
from typing import get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from sluice.config.kinds import kind_in_words
from sluice.config.schema import Config

_INTRODUCTION = """\
# Configuration

Made by `python -m sluice.config.docs > docs/configuration.md`; a test keeps it so.

One YAML recipe describes a run. It is checked as a whole before anything heavy is imported: an unknown key, a wrong type
or an impossible value is refused with the place it stands at, the rule, the value and the nearest known key.

Later layers win:

1. the recipe: `sluice up -c recipe.yaml`
2. the environment: `SLUICE__LEARNER__LR=1e-6`
3. the command line: `--set learner.lr=1e-6`, as often as needed

Values of the last two are read as YAML. Units stand in names: `_s` seconds, `_bytes`, `_steps`; what has no unit in its
name counts tokens, groups or samples, as its meaning says.
`sluice config show -c recipe.yaml` prints the resolved recipe, `sluice config check -c recipe.yaml` the numbers that follow
from it, and `sluice config from-verl FILE` translates a verl configuration.
"""


def render_markdown() -> str:
    """docs/configuration.md."""
    parts = [_INTRODUCTION, *(_section(name) for name in Config.model_fields)]
    return "\n".join(parts)


def leaves(model: type[BaseModel] = Config, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every dotted key that takes a value, in the order of the schema."""
    for name, info in model.model_fields.items():
        section = _section_class(info)
        if section is None:
            yield prefix + name, info
        else:
            yield from leaves(section, f"{prefix}{name}.")


def _section(name: str) -> str:
    """One section; of one that holds named sections, the keys of each."""
    info = Config.model_fields[name]
    section, prefix = _section_class(info), f"{name}."
    if section is None:
        section, prefix = get_args(info.annotation)[1], f"{name}.NAME."
    rows = [
        f"| `{key}` | {_default(info)} | {_cell(kind_in_words(info))} | {_cell(info.description or '')} |"
        for key, info in leaves(section, prefix)
    ]
    head = ["| key | default | allowed | meaning |", "|---|---|---|---|"]
    return "\n".join([f"## {name}", "", (section.__doc__ or "").strip(), "", *head, *rows, ""])


def _section_class(info: FieldInfo) -> type[BaseModel] | None:
    kind = info.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _default(info: FieldInfo) -> str:
    if info.is_required():
        return "must be given"
    value = info.get_default(call_default_factory=True)
    if isinstance(value, str):
        return f"`{value}`"
    return f"`{json.dumps(value)}`"


def _cell(text: str) -> str:
    """`text` with its bars escaped, because a bar ends a cell."""
    return text.replace("|", "\\|")


if __name__ == "__main__":
    sys.stdout.write(render_markdown())
