"""Words for what is wrong with a configuration: the layer, the key, the rule, the value, and the nearest known key."""

import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from sluice.config.kinds import kind_in_words, takes_several_types
from sluice.config.schema import Config
from sluice.config.schema.eval import EvalSetConfig
from sluice.config.schema.reward import GraderConfig

_Place = tuple[int | str, ...]
"""A path in the tree of a configuration."""

# Each line of `Section.problems` starts with the key that the line is about.
_IN_LIST = re.compile(r"\.\d+(?:\.|$)")
_LEADING_KEY = re.compile(r"^([a-z_0-9]+(?:\.[a-z_0-9]+)*): ")

_RULES = {
    "greater_than": "must be > {gt:g}",
    "greater_than_equal": "must be >= {ge:g}",
    "less_than": "must be < {lt:g}",
    "less_than_equal": "must be <= {le:g}",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "string_pattern_mismatch": "must match {pattern}",
    "literal_error": "must be {expected}",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "dict_type": "must be a mapping",
    "model_type": "must be a section with keys of its own",
    "model_attributes_type": "must be a section with keys of its own",
    "too_short": "must have at least {min_length} items",
    "too_long": "must have at most {max_length} items",
    "string_too_short": "must have at least {min_length} characters",
    "string_too_long": "must have at most {max_length} characters",
}
"""The rule behind each of pydantic's error types; pydantic's own words stand for any other error type."""

_NAMED = {"reward.routes.": GraderConfig, "eval.sets.": EvalSetConfig}
"""Mappings whose keys are names of the recipe's own, and what stands below a name."""

_SEVERAL_TYPES = "several_types"
"""Stands in the place of pydantic's error type where a key takes values of several types."""


@dataclass(kw_only=True, slots=True)
class Origins:
    """Which layer (a file, a variable, an override) set which key."""

    default: str
    """The layer to name for keys that no layer set."""
    _by_key: dict[str, str] = field(default_factory=dict)

    def record(self, path: Sequence[str], name: str) -> None:
        """Notes that layer `name` set `path` and every key below `path`, in place of whatever stood above or below."""
        key = ".".join(path)
        self._by_key = {
            known: layer for known, layer in self._by_key.items() if not (_within(known, key) or _within(key, known))
        }
        self._by_key[key] = name

    def of(self, key: str) -> str:
        """The layer that set a dotted key, or else the last layer that set a key below it.

        A place in a list counts as the list: the routes' short forms are lists only when they are checked.
        """
        place = _IN_LIST.split(key)[0]
        for above in (key, *(key[: dot.start()] for dot in reversed([*re.finditer(r"\.", key)]))):
            if above in self._by_key:
                return self._by_key[above]
        below = [layer for known, layer in self._by_key.items() if _within(known, place)]
        return below[-1] if below else self.default


def _within(key: str, section: str) -> bool:
    """Whether a dotted key is that of a section or below it."""
    return key == section or key.startswith(f"{section}.")


def problems_of(error: ValidationError, origins: Origins) -> list[str]:
    """One line a problem, `recipe.yaml: learner.lr: must be > 0, got -1`."""
    lines: list[str] = []
    for details in _one_a_key(error.errors(include_url=False)):
        for key, text in _texts(details):
            lines.append(f"{origins.of(key)}: {key}: {text}" if key else f"{origins.default}: {text}")
    return lines


def wrong_types_of(error: ValidationError, origins: Origins) -> list[str]:
    """The lines of `problems_of` about values that their keys do not take, for a tree that need not be whole."""
    lines: list[str] = []
    for details in _one_a_key(error.errors(include_url=False)):
        if details["type"] not in ("missing", "value_error"):
            for key, text in _texts(details):
                origin = origins.of(key)
                lines.append(f"{key}: {text}" if origin == key else f"{origin}: {key}: {text}")
    return lines


def nearest_key(key: str) -> str | None:
    """The key of the schema that an unknown dotted key most likely meant."""
    keys = schema_keys()
    section, _, name = key.rpartition(".")
    siblings = {known.rpartition(".")[2]: known for known in keys if known.rpartition(".")[0] == section}
    by_name = difflib.get_close_matches(name, siblings, n=1)
    if by_name:
        return siblings[by_name[0]]
    elsewhere = [known for known in keys if known.rpartition(".")[2] == name]
    not_above = [known for known in keys if not key.startswith(f"{known}.")]
    close = elsewhere or difflib.get_close_matches(key, not_above, n=1, cutoff=0.7)
    return close[0] if close else None


def schema_keys() -> list[str]:
    """Every dotted key of the schema, sections included."""
    return list(_keys_below(Config, ""))


def _keys_below(model: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, info in model.model_fields.items():
        yield f"{prefix}{name}"
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            yield from _keys_below(info.annotation, f"{prefix}{name}.")


def _one_a_key(errors: Sequence[ErrorDetails]) -> Iterator[ErrorDetails]:
    """The errors with one error a key: for a key that takes several types pydantic reports an error for each type."""
    told: set[_Place] = set()
    for details in errors:
        place = next((place for place, info in _fields_to(details["loc"]) if takes_several_types(info)), None)
        if place is None:
            yield details
        elif place not in told:
            told.add(place)
            yield {**details, "loc": place, "type": _SEVERAL_TYPES}


def _texts(details: ErrorDetails) -> Iterator[tuple[str, str]]:
    """(dotted key, what is wrong) of one of pydantic's errors; a validator of ours may report several."""
    key = ".".join(str(part) for part in details["loc"])
    if details["type"] == "value_error":
        for line in details["msg"].removeprefix("Value error, ").splitlines():
            named = _LEADING_KEY.match(line)
            yield (".".join(filter(None, (key, named[1]))), line[named.end() :]) if named else (key, line)
    elif details["type"] == "extra_forbidden":
        yield key, _dotted(str(details["loc"][-1])) or _unknown(key)
    elif details["type"] == "missing" and isinstance(details["loc"][-1], int):  # an item of a list of fixed length
        yield key.rpartition(".")[0], f"must be a {kind_in_words(_field(details))}, got {_short(details['input'])}"
    elif details["type"] == "missing":
        yield key, "must be given"
    else:
        yield key, f"{_rule(details)}, got {_short(details['input'])}{_reason(details)}"


def _rule(details: ErrorDetails) -> str:
    if details["type"] == _SEVERAL_TYPES:
        return f"must be {kind_in_words(_field(details))}"
    rule = _RULES.get(details["type"])
    return rule.format(**details.get("ctx", {})) if rule else details["msg"]


def _reason(details: ErrorDetails) -> str:
    """Why a key takes only one value, as the key's description says."""
    if details["type"] != "literal_error":
        return ""
    info = _field(details)
    only_one = get_origin(info.annotation) is Literal and len(get_args(info.annotation)) == 1
    return f"; {info.description}" if only_one and info.description else ""


def _field(details: ErrorDetails) -> FieldInfo:
    """The innermost key of the schema that an error is about."""
    *_, (_, info) = _fields_to(details["loc"])
    return info


def _fields_to(place: _Place) -> Iterator[tuple[_Place, FieldInfo]]:
    """The keys of the schema from the outermost key to `place`, each key with its path."""
    model: Any = Config
    for depth, name in enumerate(place, 1):
        info = model.model_fields.get(str(name)) if isinstance(model, type) and issubclass(model, BaseModel) else None
        if info is None:
            return
        yield place[:depth], info
        model = info.annotation


def _dotted(name: str) -> str | None:
    """What is wrong with a name that has dots, which a recipe does not split; None for a name without."""
    section, dot, rest = name.partition(".")
    return f"is not a known key; a recipe nests its keys, write {section}: {{{rest}: ...}}" if dot else None


def _unknown(key: str) -> str:
    if below := next((kind for section, kind in _NAMED.items() if key.startswith(section)), None):
        known = [*below.model_fields]
        near = difflib.get_close_matches(key.rpartition(".")[2], known, n=1)
        return f"is not a known key; {f'did you mean {near[0]}?' if near else 'known here are ' + ', '.join(known)}"
    near = nearest_key(key)
    if near:
        return f"is not a known key; did you mean {near}?"
    section = key.rpartition(".")[0]
    known = [name.rpartition(".")[2] for name in schema_keys() if name.rpartition(".")[0] == section]
    return f"is not a known key{'; known here are ' + ', '.join(known) if known else ''}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
