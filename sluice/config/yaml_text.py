"""YAML as recipes need it: `1e-6` is a number, a key may stand once, and errors name the file and line."""

import re
from collections.abc import Hashable
from typing import Any

import yaml

from sluice.errors import ConfigError


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


# YAML 1.1 wants a dot and a signed exponent in a float, so that PyYAML reads 1e-6 as text.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9][0-9_]*)[eE][-+]?[0-9]+$"),
    list("-+0123456789."),
)


def parse_yaml(text: str, *, where: str) -> Any:
    """Reads one document. Raises ConfigError naming `where`, line and column."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{where}: line {mark.line + 1}, column {mark.column + 1}" if mark else where
        raise ConfigError(f"{place}: not valid YAML: {getattr(error, 'problem', None) or error}") from error


def print_yaml(tree: Any) -> str:
    """Writes a document, keys in the order given."""
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=120)
