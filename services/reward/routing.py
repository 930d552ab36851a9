"""Which verifiers grade a data source, with which settings and weights.

The built-in table follows verl's names. `reward.routes` of the recipe comes first. Only worker processes import a user's
verifiers (dotted modules, `file.py:function`, `module:function`); settings of built-in verifiers are checked here, before
anything is graded.
"""

import importlib
import importlib.metadata
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields

from pydantic import TypeAdapter, ValidationError

from sluice.config.graders import BUILT_IN_GRADERS, grader_problem
from sluice.config.schema import GraderConfig
from sluice.errors import ConfigError, InvalidRequest

BUILT_IN: Mapping[str, str] = {name: f"services.reward.verifiers.{name}" for name in BUILT_IN_GRADERS}
"""Module of every built-in verifier by name."""

ROUTES: Mapping[str, str] = {
    "mixadd3": "mixadd3",
    "reasoning_gym/*": "reasoning_gym",
    "math_dapo": "math_dapo",
    "math": "math_dapo",
    "math_dapo_reasoning": "math_dapo",
    "aime*": "math_dapo",
    "openai/gsm8k": "gsm8k",
}
"""Verifier by data source; a key that ends in `*` is a prefix."""

RouteSpec = str | GraderConfig | Sequence[GraderConfig]
"""A recipe's value for a data source."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One verifier of a route."""

    name: str
    """The name of the verifier's score; unique in the route."""
    verifier: str
    """The name for the worker process: a dotted module, or `file.py:function`, or `module:function`."""
    weight: float = 1.0
    settings: Mapping[str, object] = field(default_factory=dict)
    network: bool = False
    """Whether the verifier may use the network."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Route:
    """The graders of a route, joined by `+`, and the data sources they serve."""

    name: str
    version: str
    data_sources: tuple[str, ...]


class Router:
    """Finds the parts of a data source. `routes` go before the built-in table.

    Raises ConfigError for a route to an unknown verifier, or with settings that the verifier does not take.
    """

    def __init__(self, routes: Mapping[str, RouteSpec] | None = None, *, allow_unsandboxed: bool = False) -> None:
        """`allow_unsandboxed`: `code` runs programs where they cannot be shut in, unless a route's settings say `required`."""
        specs = {key: _specs(spec, allow_unsandboxed) for key, spec in (routes or {}).items()}
        given = {key: _parts(spec, where=f"reward.routes.{key}") for key, spec in specs.items()}
        built_in = {
            key: _parts([GraderConfig(grader=name)], where=key) for key, name in ROUTES.items() if key not in given
        }
        self._given = tuple(given)
        self._table = {**given, **built_in}

    def parts_of(self, data_source: str) -> tuple[Part, ...]:
        """The parts, at least one. Raises InvalidRequest for a data source without a route."""
        for key, parts in self._table.items():
            if _serves(key, data_source):
                return parts
        raise InvalidRequest(
            f"data_source: no verifier for {data_source!r}, known are {', '.join(self._table)}; "
            "add it to reward.routes in the recipe"
        )

    def is_routed_by_recipe(self, data_source: str) -> bool:
        """Whether `reward.routes` serves a data source, whatever the built-in table says of the data source."""
        return any(_serves(key, data_source) for key in self._given)

    @property
    def needs_network(self) -> bool:
        """Whether any verifier may use the network."""
        return any(part.network for parts in self._table.values() for part in parts)

    @property
    def key_variables(self) -> tuple[str, ...]:
        """The environment variables that hold the keys of the judges."""
        settings = (part.settings for parts in self._table.values() for part in parts)
        return tuple(str(one["api_key_env"]) for one in settings if one.get("api_key_env"))

    @property
    def must_shut_in(self) -> str:
        """The key of a route whose programs may only run shut in; empty without one."""
        places = [
            f"reward.routes.{key}"
            for key, parts in self._table.items()
            for part in parts
            if part.verifier == BUILT_IN["code"] and part.settings.get("isolation") == "required"
        ]
        return next(iter(places), "")

    def routes(self) -> list[Route]:
        """All routes in the order of the table. Verifiers that are not installed or not built in have an empty version."""
        sources: dict[str, list[str]] = {}
        versions: dict[str, str] = {}
        for key, parts in self._table.items():
            name = grader_name(parts)
            sources.setdefault(name, []).append(key)
            versions[name] = "+".join(_version(part.verifier) for part in parts)
        return [Route(name=name, version=versions[name], data_sources=tuple(keys)) for name, keys in sources.items()]


def grader_name(parts: Sequence[Part]) -> str:
    """The grader's name in the results of a route."""
    return "+".join(part.name for part in parts)


def _serves(key: str, data_source: str) -> bool:
    return data_source == key or (key.endswith("*") and data_source.startswith(key[:-1]))


def _specs(spec: RouteSpec, allow_unsandboxed: bool) -> list[GraderConfig]:
    """A route's graders; `code` gets the isolation that the recipe's `reward.allow_unsandboxed` stands for."""
    if isinstance(spec, str):
        spec = GraderConfig(grader=spec)
    specs = [spec] if isinstance(spec, GraderConfig) else list(spec)
    return [
        one.model_copy(update={"settings": {**one.settings, "isolation": _isolation(one.settings, allow_unsandboxed)}})
        if one.grader == "code"
        else one
        for one in specs
    ]


def _isolation(settings: Mapping[str, object], allow_unsandboxed: bool) -> object:
    """What a route states, but for `if_possible` without the operator's word."""
    stated = settings.get("isolation", "if_possible" if allow_unsandboxed else "required")
    return "required" if stated == "if_possible" and not allow_unsandboxed else stated


def _parts(specs: Sequence[GraderConfig], *, where: str) -> tuple[Part, ...]:
    if not specs:
        raise ConfigError(f"{where}: must name at least one grader, got []")
    parts = tuple(_part(one, where=where) for one in specs)
    names = [part.name for part in parts]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConfigError(f"{where}: graders must have different names, got {twice[0]!r} twice; set `name`")
    return parts


def _part(spec: GraderConfig, *, where: str) -> Part:
    settings, network = spec.settings, spec.network
    if spec.grader in BUILT_IN:
        settings = _checked(spec, where=where)
        network |= getattr(importlib.import_module(BUILT_IN[spec.grader]), "NETWORK", False)
    elif problem := grader_problem(spec.grader):
        raise ConfigError(f"{where}: {problem}")
    return Part(
        name=spec.name or spec.grader,
        verifier=BUILT_IN.get(spec.grader, spec.grader),
        weight=spec.weight,
        settings=settings,
        network=network,
    )


def _checked(spec: GraderConfig, *, where: str) -> dict[str, object]:
    """All settings of a built-in verifier. Raises ConfigError with the name of a wrong setting."""
    kind = getattr(importlib.import_module(BUILT_IN[spec.grader]), "Settings", None)
    if kind is None:
        if spec.settings:
            raise ConfigError(f"{where}: {spec.grader} takes no settings, got {', '.join(spec.settings)}")
        return {}
    known = [one.name for one in fields(kind)]
    if unknown := [name for name in spec.settings if name not in known]:
        raise ConfigError(f"{where}: {spec.grader} has no setting {unknown[0]!r}; it has {', '.join(known)}")
    try:
        return asdict(TypeAdapter(kind).validate_python(spec.settings))
    except ValidationError as error:
        details = error.errors(include_url=False)[0]
        place = ".".join(str(step) for step in details["loc"])
        said = details["msg"].removeprefix("Value error, ")
        raise ConfigError(
            f"{where}: {spec.grader}: " + (f"settings.{place}: {said}, got {details['input']!r}" if place else said)
        ) from error


def _version(verifier: str) -> str:
    """The version of a built-in verifier, which is cheap to import; empty for a user's, which never runs in this process."""
    if verifier not in BUILT_IN.values():
        return ""
    try:
        return importlib.import_module(verifier).VERSION
    except importlib.metadata.PackageNotFoundError:  # an optional dependency
        return ""
