"""Takes a verl configuration unchanged and writes the Sluice recipe that trains the same way.

Every setting is translated, or ignored with a reason (a note), or refused by name with what to do: nothing is dropped in
silence. Where a source is silent, verl's defaults hold, not Sluice's. verl_table.py says what becomes of each setting.
"""

import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from sluice.config.problems import Origins, wrong_types_of
from sluice.config.schema import Config
from sluice.config.verl_rules import Ignore, Move, Only, Rule, Switched, Unset, reward_routes
from sluice.config.verl_table import DEFAULTS, TABLE
from sluice.config.yaml_text import parse_yaml
from sluice.errors import ConfigError

_INTERPOLATION = re.compile(r"^\$\{(?:oc\.select:)?\s*([\w.]+)\s*(?:,\s*(.*?)\s*)?\}$")
_REFERENCE = re.compile(r"\$\{([\w.]+)\}")
_MOST_REFERENCES = 32
"""References that are followed from one value; a value that refers to itself grows without end."""
_SHELL = re.compile(r"\$(?:[A-Za-z_]\w*|[@*#?!$0-9]|\([^)]*\)?)|`[^`]*`?")
"""A shell's variable or command."""
_MANDATORY = "???"
_HYDRA_KEY = re.compile(r"([{,]\s*[\w.+-]+):(?=[^\s/])")
"""A key of a mapping on hydra's command line, where no blank follows the colon."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VerlTranslation:
    """A Sluice recipe as a tree, and the notes for the reader of the recipe."""

    config_tree: dict[str, Any]
    notes: list[str]


def from_verl(source: Mapping[str, Any] | Sequence[str]) -> VerlTranslation:
    """Translates nested or dotted YAML, or a list of `key=value` as hydra takes it (`+key=value` too).

    Raises:
        ConfigError: one line for every setting that cannot be honoured and every unknown key.
    """
    settings = dict(_from_tree(source)) if isinstance(source, Mapping) else dict(_from_list(source))
    work = _Translator(settings=settings)
    for key, value in settings.items():
        work.take(key, value)
    for key, value in DEFAULTS.items():
        work.take_default(key, value)
    if work.moved.get("algorithm.rollout_correction.rollout_is", "none") != "none":
        work.fallbacks["algorithm.proximal"] = "recompute"
    work.place_function()
    tree = _tree({**work.fallbacks, **work.moved})
    work.refuse_wrong_types(tree)
    if work.refusals:
        raise ConfigError("\n".join(work.refusals))
    return VerlTranslation(config_tree=tree, notes=work.notes())


def looks_like_verl(tree: Mapping[str, Any]) -> bool:
    """Whether a recipe is in verl's form: its largest section is one that Sluice does not have."""
    return any(str(key).lstrip("+").split(".")[0] == "actor_rollout_ref" for key in tree)


@dataclass(kw_only=True, slots=True)
class _Translator:
    """Sorts settings by what becomes of them."""

    settings: Mapping[str, Any]
    moved: dict[str, Any] = field(default_factory=dict)
    fallbacks: dict[str, Any] = field(default_factory=dict)
    refusals: list[str] = field(default_factory=list)
    _ignored: dict[str, list[str]] = field(default_factory=dict)
    _remarks: list[str] = field(default_factory=list)
    _origin: dict[str, str] = field(default_factory=dict)
    _function: dict[str, Any] = field(default_factory=dict)
    """Path and name of the source's own reward function."""
    _function_settings: dict[str, Any] = field(default_factory=dict)
    """Further keyword arguments of the source's own reward function."""

    def take(self, key: str, raw: Any) -> None:
        """Applies the rule of one setting."""
        entry, rule = _rule_of(key)
        if isinstance(rule, Switched):
            if self._is_off(rule):
                self._ignore(f"{key}={raw}", f"switched off by {rule.switch}={self.settings[rule.switch]}")
                return
            rule = rule.rule
        if isinstance(rule, Ignore):
            self._ignore(entry, rule.why)
            return
        if rule is None:
            self.refusals.append(f"{key}: is not a key of verl that this import knows{_did_you_mean(key)}")
            return
        try:
            value = self._resolve(raw)
        except LookupError as error:
            if isinstance(rule, Move) and rule.to == ("run.name",):
                self._ignore(f"{key}={raw}", "a name that only a shell can know; run.name keeps its default")
            else:
                self.refusals.append(f"{key}: got {raw!r}, and {error}; write the value itself")
            return
        if isinstance(rule, Only):
            if value not in rule.values:
                self.refusals.append(f"{key}: cannot be honoured, got {value!r}: {rule.why}")
        elif value is None or value == _MANDATORY:
            return
        elif isinstance(rule, Move):
            self._move(key, rule, value)
        elif rule.part == "setting":
            self._put(self._function_settings, key.removeprefix(entry.removesuffix("*")), value, key=key)
        else:
            self._put(self._function, rule.part, value, key=key)

    def _is_off(self, rule: Switched) -> bool:
        """Whether the source itself switches the setting off."""
        try:
            value = self._resolve(self.settings[rule.switch])
        except LookupError:  # the switch is not given, or is refused where its own turn comes
            return False
        return any(value == off and type(value) is type(off) for off in rule.off)

    def take_default(self, key: str, value: Any) -> None:
        """Fills in verl's default, unless the source sets the same thing by this or another key."""
        rule = TABLE[key]
        rule = rule.rule if isinstance(rule, Switched) else rule
        assert isinstance(rule, Move), f"{key}: a default must go somewhere"
        for target in rule.to:
            if target not in self.moved and target not in self.fallbacks:
                self.fallbacks[target] = value
                self._remarks.append(f"{target}: {value} is verl's default for {key}, which the source does not set")

    def place_function(self) -> None:
        """Routes every data source to the source's own reward function, where the settings name one."""
        path, name = self._function.get("path"), self._function.get("name", "compute_score")
        if path is None:
            if named := [self._origin[part] for part in (*self._function, *self._function_settings)]:
                self._ignore(", ".join(named), "only used with custom_reward_function.path")
            return
        key = self._origin["path"]
        try:
            self.moved["reward.routes"] = reward_routes(path, name, _nested(self._function_settings))
        except ValueError as error:
            self.refusals.append(f"{key}: cannot be honoured, got {path!r}: {error}")
        self._remarks.append(
            f"{key}: {name} grades every data source, called by keyword as verl does, from where the run is started; where "
            "its result has no `acc`, its score cut to [0, 1] is the accuracy that filter_groups looks at"
        )

    def refuse_wrong_types(self, tree: Mapping[str, Any]) -> None:
        """Refuses values that their keys of the schema do not take, each by the source's own key."""
        origins = Origins(default="from-verl")
        for target, key in self._origin.items():
            origins.record(target.split("."), key)
        try:
            Config.model_validate_json(json.dumps(tree), strict=True)
        except ValidationError as error:
            self.refusals += wrong_types_of(error, origins)

    def notes(self) -> list[str]:
        """Remarks, then the ignored keys by reason."""
        if "run.total_steps" not in self.moved:
            self._remarks.append("run.total_steps: is not set by the source, set it: epochs do not end a run")
        if "algorithm.adv_estimator" not in self.settings:
            self._remarks.append("algorithm.adv_estimator: is not set by the source; training is with group advantages")
        loss, mode = (
            {**self.fallbacks, **self.moved}.get(f"algorithm.{key}") for key in ("loss_mode", "loss_agg_mode")
        )
        if loss in ("gspo", "sapo") and mode != "seq-mean-token-mean":
            self._remarks.append(
                f"algorithm.loss_agg_mode: verl's {loss} takes seq-mean-token-mean whatever the source says; set it to have "
                "the same"
            )
        self._remarks.append(
            "coordinator.max_staleness: is left at Sluice's default; 0 alternates strictly, as verl does"
        )
        return self._remarks + [f"ignored, {why}: {', '.join(keys)}" for why, keys in self._ignored.items()]

    def _ignore(self, what: str, why: str) -> None:
        keys = self._ignored.setdefault(why, [])
        if what not in keys:
            keys.append(what)

    def _move(self, key: str, rule: Move, value: Any) -> None:
        try:
            converted = rule.convert(value)
        except Unset as unset:
            self._ignore(f"{key}={value}", str(unset))
            return
        except ValueError as error:
            self.refusals.append(f"{key}: cannot be honoured, got {value!r}: {error}")
            return
        except TypeError:
            self.refusals.append(f"{key}: cannot be honoured, got {value!r}: verl's own is of another type")
            return
        into = self.fallbacks if rule.fallback else self.moved
        for target in rule.to:
            self._put(into, target, converted, key=key)
        if rule.note:
            self._remarks.append(f"{key}: {rule.note}")

    def _put(self, into: dict[str, Any], target: str, value: Any, *, key: str) -> None:
        """Writes one setting; two settings of the source may go to one key where both give the same value."""
        if target in into and into[target] != value:
            self.refusals.append(
                f"{key}: contradicts {self._origin[target]}, got {value!r} and {into[target]!r}; give one of them"
            )
        into[target] = value
        self._origin[target] = key

    def _resolve(self, value: Any) -> Any:
        """Follows `${other.key}`, within a text too, and `${oc.select:other.key,default}`. Raises LookupError."""
        if isinstance(value, list):
            return [self._resolve(item) for item in value]
        seen: set[str] = set()
        while isinstance(value, str) and "${" in value:
            reference = _INTERPOLATION.match(value)
            if value in seen or len(seen) > _MOST_REFERENCES:
                raise LookupError("it is not a plain reference to another key")
            seen.add(value)
            if reference is None:
                value = _REFERENCE.sub(lambda match: str(self._given(match[1])), value)
                continue
            key, default = reference.groups()
            if key not in self.settings and default is None:
                raise LookupError(f"{key} is not given")
            value = self.settings[key] if key in self.settings else parse_yaml(default, where=key)
        if isinstance(value, str) and (shell := _SHELL.search(value)):
            raise LookupError(f"{shell[0]} is for a shell, which has not put its value there")
        return value

    def _given(self, key: str) -> Any:
        if key not in self.settings:
            raise LookupError(f"{key} is not given")
        return self.settings[key]


def _rule_of(key: str) -> tuple[str, Rule | None]:
    """The table's entry for a key and its rule: the key itself, else the closest `.*` above it."""
    parts = key.split(".")
    entries = [key, *(".".join([*parts[:length], "*"]) for length in range(len(parts) - 1, 0, -1))]
    return next(((entry, TABLE[entry]) for entry in entries if entry in TABLE), (key, None))


def _did_you_mean(key: str) -> str:
    near = difflib.get_close_matches(key, [known for known in TABLE if not known.endswith("*")], n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _from_tree(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields leaves by dotted key; an empty section is a leaf. Leaves out `_target_`, which only names a class of verl."""
    for name, value in tree.items():
        key = f"{prefix}{str(name).lstrip('+')}"
        if name in ("_target_", "defaults", "hydra"):
            continue
        if isinstance(value, Mapping) and value:
            yield from _from_tree(value, f"{key}.")
        else:
            yield key, value


def _from_list(assignments: Sequence[str]) -> Iterator[tuple[str, Any]]:
    for text in assignments:
        key, equals, value = text.strip().partition("=")
        if not key.strip("+~ ") or not (equals or key.startswith("~")):
            raise ConfigError(f"{text!r}: must be KEY=VALUE")
        if key.startswith("~"):  # hydra's way to take a key out
            yield key[1:].strip(), None
            continue
        key = key.strip().lstrip("+")
        if _SHELL.search(value):
            yield key, value  # refused by name in its turn, unless the setting makes no difference
            continue
        parsed = parse_yaml(_HYDRA_KEY.sub(r"\1: ", value) if value.lstrip().startswith("{") else value, where=key)
        if isinstance(parsed, Mapping) and parsed:
            yield from _from_tree(parsed, f"{key}.")
        else:
            yield key, parsed


def _tree(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Sections in the order of the schema, so that the recipe reads like any other."""
    tree = _nested(flat)
    return {name: tree[name] for name in Config.model_fields if name in tree}


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        *sections, leaf = key.split(".")
        place = tree
        for section in sections:
            place = place.setdefault(section, {})
        place[leaf] = value
    return tree
