"""YAML as recipes need it: `1e-6` is a number, a key may stand once, and errors name the file and line.

Numbers are what they look like: `0.5_5` (verl's bounds), `1:30` and `010` are text, where YAML 1.1 reads .55, 90 and 8. A date
is text as it is written. `<<` merges a mapping, as in YAML 1.1.
"""

import re
from collections.abc import Hashable, Iterator
from itertools import count
from typing import Any, Final

import yaml

from sluice.errors import ConfigError

_MOST_LEVELS: Final = 50
_MOST_VALUES: Final = 100_000
"""Chosen: a hundred recipes. Aliases make a file of a few lines as large as one likes."""


class _Loader(yaml.SafeLoader):
    """SafeLoader, stricter about keys and as lenient about floats as Python."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Refuses a key that stands twice, of which YAML would silently keep the last value, and one that is no text.

        Done before `<<` is followed, which puts keys in that may well stand twice.
        """
        node = super().compose_mapping_node(anchor)
        assert node is not None
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key must be text", key_node.start_mark)
            key = key_node.value if key_node.tag == _MERGE else self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands twice", key_node.start_mark
                )
            seen.add(key)
        return node


_MERGE = "tag:yaml.org,2002:merge"
_INT, _FLOAT, _TIMESTAMP = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float", "tag:yaml.org,2002:timestamp"
_NUMBERS = {
    # Underscores only between groups of three digits, 32_768.
    _INT: r"^(?:[-+]?(?:0|[1-9][0-9]*|[1-9][0-9]{0,2}(?:_[0-9]{3})+)|0x[0-9a-fA-F]+|0b[01]+)$",
    # YAML 1.1 wants a dot and a signed exponent in a float, so that PyYAML reads 1e-6 as text.
    _FLOAT: r"^(?:[-+]?(?:[0-9]+\.[0-9]*(?:[eE][-+]?[0-9]+)?|\.?[0-9]+[eE][-+]?[0-9]+|\.[0-9]+|\.(?:inf|Inf|INF))"
    r"|\.(?:nan|NaN|NAN))$",
}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in (*_NUMBERS, _TIMESTAMP)]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _tag, _pattern in _NUMBERS.items():
    _Loader.add_implicit_resolver(_tag, re.compile(_pattern), list("-+0123456789."))


def parse_yaml(text: str, *, where: str) -> Any:
    """Reads one document. Raises ConfigError naming `where`, and line and column where they are known."""
    try:
        return _as_json_has_it(yaml.load(text.removeprefix("\ufeff"), Loader=_Loader), where=where, seen=count(1))
    except RecursionError:
        raise ConfigError(f"{where}: must not be nested more than {_MOST_LEVELS} levels deep") from None
    except (ValueError, TypeError) as error:  # a number of many digits, `!!timestamp` of a date that is none
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{where}: not valid YAML: {error}") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ConfigError(
            f"{where}: line {line}: not valid YAML: the character {_code(error.character)} is not allowed"
        ) from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{where}: line {mark.line + 1}, column {mark.column + 1}" if mark else where
        raise ConfigError(f"{place}: not valid YAML: {getattr(error, 'problem', None) or error}") from error


def _as_json_has_it(value: Any, *, where: str, seen: Iterator[int], levels: int = _MOST_LEVELS) -> Any:
    """The same in the types of JSON: keys are texts, a set is a mapping. `seen` counts the values. Raises ConfigError."""
    if next(seen) > _MOST_VALUES:
        raise ConfigError(f"{where}: must not hold more than {_MOST_VALUES} values, those that aliases repeat included")
    if not levels:
        raise ConfigError(f"{where}: must not be nested more than {_MOST_LEVELS} levels deep, nor hold itself")
    if isinstance(value, dict):
        return {
            _key(key): _as_json_has_it(item, where=where, seen=seen, levels=levels - 1) for key, item in value.items()
        }
    if isinstance(value, set):
        return dict.fromkeys(map(_key, value))
    if isinstance(value, list):
        return [_as_json_has_it(item, where=where, seen=seen, levels=levels - 1) for item in value]
    if isinstance(value, str) and not value.isascii() and re.search("[\ud800-\udfff]", value):
        raise ConfigError(f"{where}: must be encodable as UTF-8, got half of a surrogate pair in {value!r:.60}")
    if value is not None and not isinstance(value, str | int | float):
        raise ConfigError(f"{where}: must hold text, numbers, true, false, null, lists and mappings, got {value!r:.60}")
    return value


def _code(character: str | int | bytes) -> str:
    """`U+0000`, for a character that is best not printed."""
    return f"U+{ord(character) if isinstance(character, str | bytes) else character:04X}"


def _key(key: Hashable) -> str:
    """A key as text, in YAML's words."""
    return "null" if key is None else str(key).lower() if isinstance(key, bool) else str(key)


def print_yaml(tree: Any) -> str:
    """Writes a document, keys in the order given."""
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=120)
