"""YAML as recipes need it: `1e-6` is a number, a key may stand once, and errors name the file and line.

Numbers are what they look like: `0.5_5` (verl's bounds), `1:30` and `010` are text, where YAML 1.1 reads .55, 90 and 8.
"""

import re
from collections.abc import Hashable
from typing import Any, Final

import yaml

from sluice.errors import ConfigError

_MOST_LEVELS: Final = 50


class _Loader(yaml.SafeLoader):
    """SafeLoader, stricter about keys and as lenient about floats as Python."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Refuses a key that stands twice: YAML would silently keep the last value."""
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


_INT, _FLOAT = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"
_NUMBERS = {
    # Underscores only between groups of three digits, 32_768.
    _INT: r"^(?:[-+]?(?:0|[1-9][0-9]*|[1-9][0-9]{0,2}(?:_[0-9]{3})+)|0x[0-9a-fA-F]+|0b[01]+)$",
    # YAML 1.1 wants a dot and a signed exponent in a float, so that PyYAML reads 1e-6 as text.
    _FLOAT: r"^(?:[-+]?(?:[0-9]+\.[0-9]*(?:[eE][-+]?[0-9]+)?|\.?[0-9]+[eE][-+]?[0-9]+|\.[0-9]+|\.(?:inf|Inf|INF))"
    r"|\.(?:nan|NaN|NAN))$",
}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _NUMBERS]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _tag, _pattern in _NUMBERS.items():
    _Loader.add_implicit_resolver(_tag, re.compile(_pattern), list("-+0123456789."))


def parse_yaml(text: str, *, where: str) -> Any:
    """Reads one document. Raises ConfigError naming `where`, and line and column where they are known."""
    try:
        return _as_json_has_it(yaml.load(text.removeprefix("\ufeff"), Loader=_Loader), where=where)
    except RecursionError:
        raise ConfigError(f"{where}: must not be nested more than {_MOST_LEVELS} levels deep") from None
    except (ValueError, TypeError) as error:  # a date that is none, a number of many digits, a list as a key
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{where}: not valid YAML: {error}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{where}: line {mark.line + 1}, column {mark.column + 1}" if mark else where
        raise ConfigError(f"{place}: not valid YAML: {getattr(error, 'problem', None) or error}") from error


def _as_json_has_it(value: Any, *, where: str, levels: int = _MOST_LEVELS) -> Any:
    """The same in the types of JSON: keys are texts, a date is a text, a set is a mapping. Raises ConfigError."""
    if not levels:
        raise ConfigError(f"{where}: must not be nested more than {_MOST_LEVELS} levels deep, nor hold itself")
    if isinstance(value, dict):
        return {_key(key): _as_json_has_it(item, where=where, levels=levels - 1) for key, item in value.items()}
    if isinstance(value, set):
        return dict.fromkeys(map(_key, value))
    if isinstance(value, list):
        return [_as_json_has_it(item, where=where, levels=levels - 1) for item in value]
    if isinstance(value, str) and not value.isascii() and re.search("[\ud800-\udfff]", value):
        raise ConfigError(f"{where}: must be encodable as UTF-8, got half of a surrogate pair in {value!r:.60}")
    return value if value is None or isinstance(value, str | int | float) else str(value)


def _key(key: Hashable) -> str:
    """A key as text, in YAML's words."""
    return "null" if key is None else str(key).lower() if isinstance(key, bool) else str(key)


def print_yaml(tree: Any) -> str:
    """Writes a document, keys in the order given."""
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=120)
