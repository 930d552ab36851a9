"""A configuration key by key, beside the defaults or beside another run's."""

from dataclasses import dataclass
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from sluice.config.schema import Config
from sluice.ui.shown_text import visible

REQUIRED = "(no default)"


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
    found: list[Setting] = []
    for name, info in type(section).model_fields.items():
        value, key = getattr(section, name), f"{prefix}{name}"
        beside = getattr(other, name, None) if other is not None else None
        if isinstance(value, BaseModel):
            found += _section(value, beside if isinstance(beside, BaseModel) else None, f"{key}.")
            continue
        against = _written(beside) if other is not None else _default(info)
        text = _written(value)
        found.append(
            Setting(key=key, value=text, against=against, differs=text != against, description=info.description or "")
        )
    return found


def _default(info: FieldInfo) -> str:
    return REQUIRED if info.is_required() else _written(info.get_default(call_default_factory=True, validated_data={}))


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
