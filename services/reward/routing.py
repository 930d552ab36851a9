"""Which verifier grades a data source.

The built-in table follows verl's names. `reward.routes` of the recipe is asked first; its values are built-in
verifiers or dotted module names of one's own, which are imported by the worker processes alone.
"""

import importlib
import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass

from sluice.errors import ConfigError, InvalidRequest

BUILT_IN: Mapping[str, str] = {
    name: f"services.reward.verifiers.{name}" for name in ("mixadd3", "math_dapo", "reasoning_gym")
}
"""Module of every built-in verifier by name."""

ROUTES: Mapping[str, str] = {
    "mixadd3": "mixadd3",
    "reasoning_gym/*": "reasoning_gym",
    "math_dapo": "math_dapo",
    "math": "math_dapo",
    "math_dapo_reasoning": "math_dapo",
    "aime*": "math_dapo",
}
"""Verifier by data source; a key that ends in `*` is a prefix."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Route:
    """One verifier and the data sources it serves."""

    name: str
    version: str
    data_sources: tuple[str, ...]


class Router:
    """Finds the verifier of a data source. `routes` (data source -> verifier) goes before the built-in table.

    Raises ConfigError for a route to what is neither a built-in verifier nor a dotted module name.
    """

    def __init__(self, routes: Mapping[str, str] | None = None) -> None:
        self._table = {**(routes or {}), **{key: name for key, name in ROUTES.items() if key not in (routes or {})}}
        for key, name in self._table.items():
            if name not in BUILT_IN and "." not in name:
                raise ConfigError(
                    f"reward.routes.{key}: must be one of {', '.join(BUILT_IN)} or a dotted module name, got {name!r}"
                )

    def name_of(self, data_source: str) -> str:
        """Name of the verifier. Raises InvalidRequest for a data source that none serves."""
        for key, name in self._table.items():
            if data_source == key or (key.endswith("*") and data_source.startswith(key[:-1])):
                return name
        raise InvalidRequest(
            f"data_source: no verifier for {data_source!r}, known are {', '.join(self._table)}; "
            "add it to reward.routes in the recipe"
        )

    def module_of(self, name: str) -> str:
        """Dotted module of a verifier by the name that `name_of` gave."""
        return BUILT_IN.get(name, name)

    def routes(self) -> list[Route]:
        """All verifiers in the order of the table. Versions of those that are not installed or not ours are empty."""
        sources: dict[str, list[str]] = {}
        for key, name in self._table.items():
            sources.setdefault(name, []).append(key)
        return [Route(name=name, version=_version(name), data_sources=tuple(keys)) for name, keys in sources.items()]


def _version(name: str) -> str:
    """A built-in verifier is cheap to import; somebody else's module never runs in this process."""
    if name not in BUILT_IN:
        return ""
    try:
        return importlib.import_module(BUILT_IN[name]).VERSION
    except importlib.metadata.PackageNotFoundError:  # an optional dependency
        return ""
