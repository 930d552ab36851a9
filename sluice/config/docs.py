"""`python -m sluice.config.docs > docs/configuration.md`: every key of the schema with its default and meaning.

A test keeps the page equal to what this prints. Meanings are the schema's own descriptions.
"""

import json
import sys
from collections.abc import Iterator
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

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

"""Meaning by dotted key."""


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
    section = _section_class(Config.model_fields[name])
    assert section is not None, f"{name}: the schema's top level has sections only"
    rows = [
        f"| `{key}` | {_default(info)} | {_allowed(info)} | {_cell(info.description or '')} |"
        for key, info in leaves(section, f"{name}.")
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


def _allowed(info: FieldInfo) -> str:
    """The type and its limits, in YAML's words."""
    kind, or_null, _ = _kind(info.annotation).partition(" or null")
    limits = [text for part in info.metadata for text in _limits(part)]
    return _cell(_limited(kind, limits) + or_null)


def _kind(kind: Any) -> str:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return " or ".join(
            f"`{json.dumps(value)}`" if not isinstance(value, str) else f"`{value}`" for value in arguments
        )
    if origin in (Union, UnionType):
        null = ["null"] if NoneType in arguments else []
        return " or ".join([*(_kind(argument) for argument in arguments if argument is not NoneType), *null])
    if hasattr(kind, "__metadata__"):  # Annotated, below a union
        return _limited(_kind(arguments[0]), [text for part in kind.__metadata__ for text in _limits(part)])
    if origin is list:
        return f"list of {_kind(arguments[0])}"
    if origin is tuple:
        return f"list of {len(arguments)} x {_kind(arguments[0])}"
    if origin is dict:
        return f"mapping of text to {_kind(arguments[1])}"
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return "section"
    return {bool: "true or false", int: "whole number", float: "number", str: "text"}[kind]


def _limited(kind: str, limits: list[str]) -> str:
    return " ".join([kind, " and ".join(limits)]) if limits else kind


def _limits(part: Any) -> Iterator[str]:
    """What one piece of metadata demands; a Field inside an annotation holds several."""
    for constraint in getattr(part, "metadata", [part]):
        for name, sign in (("gt", ">"), ("ge", ">="), ("lt", "<"), ("le", "<=")):
            if (bound := getattr(constraint, name, None)) is not None:
                yield f"{sign} {bound:g}"
        if least := getattr(constraint, "min_length", None):
            yield f"with at least {least} item"
        if pattern := getattr(constraint, "pattern", None):
            yield f"matching `{pattern}`"


def _cell(text: str) -> str:
    """A bar would end the cell."""
    return text.replace("|", "\\|")


if __name__ == "__main__":
    sys.stdout.write(render_markdown())
