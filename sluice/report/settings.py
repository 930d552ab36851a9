"""The keys of a configuration with their values and defaults, as text for people."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sluice.config.docs import leaves
from sluice.config.schema import Config
from sluice.telemetry.redaction import redacted

MUST_BE_GIVEN = "must be given"


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """One dotted key."""

    key: str
    value: str
    default: str
    changed: bool
    """Whether the value is not the default; a key without a default is always changed."""


def settings(config: Config) -> list[Setting]:
    """Every key, in the order of the schema."""
    tree = config.model_dump(mode="json")
    found = []
    for key, info in leaves():
        value = _text(_at(tree, key))
        default = MUST_BE_GIVEN if info.is_required() else _text(info.get_default(call_default_factory=True))
        found.append(Setting(key=key, value=redacted(value), default=default, changed=value != default))
    return found


def _at(tree: Mapping[str, Any], key: str) -> Any:
    found: Any = tree
    for name in key.split("."):
        found = found[name]
    return found


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
