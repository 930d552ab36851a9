"""A configuration key by key, beside the defaults or beside another run's."""

from dataclasses import dataclass
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from sluice.config.schema import Config
from sluice.telemetry.redaction import redacted
from sluice.ui.shown_text import visible

REQUIRED = "(no default)"

_ABSENT: Any = object()
"""In the place of a default that a key lacks."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """One key; values are written as in a recipe."""

    key: str
    value: str
    against: str
    differs: bool
    description: str


def settings(config: Config, *, other: Config | None = None) -> list[Setting]:
    """Every key in the order of the schema."""
    return list(_section(config, other, ""))


def _section(section: BaseModel, other: BaseModel | None, prefix: str) -> list[Setting]:
    """Without `other` the defaults stand beside. A value that is a section on one side alone is one key."""
    found: list[Setting] = []
    for name, info in type(section).model_fields.items():
        value, key = getattr(section, name), f"{prefix}{name}"
        beside = _default(info) if other is None else getattr(other, name)
        if isinstance(value, BaseModel) and (isinstance(beside, BaseModel) or beside is _ABSENT):
            found += _section(value, None if beside is _ABSENT else beside, f"{key}.")
            continue
        text, against = _written(value), REQUIRED if beside is _ABSENT else _written(beside)
        described = info.description or ""
        found.append(
            Setting(
                key=key, value=redacted(text), against=redacted(against), differs=text != against, description=described
            )
        )
    return found


def _default(info: FieldInfo) -> Any:
    return _ABSENT if info.is_required() else info.get_default(call_default_factory=True, validated_data={})


def _written(value: Any) -> str:
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    if isinstance(value, dict):
        value = {
            str(name): one.model_dump(mode="json") if isinstance(one, BaseModel) else one for name, one in value.items()
        }
    if isinstance(value, list | tuple):
        value = [one.model_dump(mode="json") if isinstance(one, BaseModel) else one for one in value]
    try:
        text = yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True)
    except yaml.YAMLError:
        text = str(value)
    return visible(text.removesuffix("\n").removesuffix("\n...").strip())
