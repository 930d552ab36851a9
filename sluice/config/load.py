"""From a recipe, the environment and the command line to one checked `Config`, and back to text.

Later layers win: recipe < environment (`SLUICE__LEARNER__LR=1e-6`) < overrides (`learner.lr=1e-6`). Values in environment
and overrides are read as YAML. A recipe in verl's form is recognised and translated (sluice/config/verl.py).
"""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from sluice.config.problems import Origins, problems_of
from sluice.config.schema import Config
from sluice.config.verl import from_verl, looks_like_verl
from sluice.config.yaml_text import parse_yaml, print_yaml
from sluice.errors import ConfigError

ENVIRONMENT_PREFIX = "SLUICE__"

# Not structlog: somebody may pipe what the command prints, and without set-up only a standard logger writes to stderr.
log = logging.getLogger(__name__)


def load_config(
    path: Path | None, *, overrides: Sequence[str] = (), environ: Mapping[str, str] | None = None
) -> Config:
    """Reads and checks a run's configuration.

    Args:
        path: the recipe; None where environment and overrides say everything.
        overrides: `learner.lr=1e-6` each.
        environ: the variables to look in, usually os.environ; none are read unless they are passed.

    Raises:
        ConfigError: one line a problem, each naming where it stands, the key, the rule and the value.
    """
    layers = [] if path is None else [(str(path), _read(path))]
    layers += [(name, tree) for name, tree in _from_environment(environ or {})]
    layers += [("override", _override(text)) for text in overrides]
    return _checked(layers, where="configuration" if path is None else str(path))


def parse_config(text: str, *, where: str) -> Config:
    """Reads a configuration that `dump_config` wrote. Raises ConfigError."""
    return _checked([(where, _sections(parse_yaml(text, where=where), where=where))], where=where)


def dump_config(config: Config) -> str:
    """The resolved configuration as YAML, keys in the order of the schema; `parse_config` gives it back."""
    return print_yaml(config.model_dump(mode="json"))


def _checked(layers: Sequence[tuple[str, Mapping[str, Any]]], *, where: str) -> Config:
    tree: dict[str, Any] = {}
    origins = Origins(default=where)
    for name, layer in layers:
        _merge(tree, layer, name=name, origins=origins, above=())
    # As JSON, pydantic's strict mode takes a list for a tuple and still no true for 1 or "5" for 5.
    try:
        return Config.model_validate_json(json.dumps(tree, default=str), strict=True)
    except ValidationError as error:
        raise ConfigError("\n".join(problems_of(error, origins))) from None


def _merge(
    into: dict[str, Any], layer: Mapping[str, Any], *, name: str, origins: Origins, above: tuple[str, ...]
) -> None:
    """Writes a layer over `into`; sections are merged, everything else is replaced."""
    for key, value in layer.items():
        path = (*above, str(key))
        if isinstance(value, Mapping) and value:
            section = into.get(path[-1])
            into[path[-1]] = section = section if isinstance(section, dict) else {}
            _merge(section, value, name=name, origins=origins, above=path)
        else:
            into[path[-1]] = value
            origins.record(path, name)


def _read(path: Path) -> Mapping[str, Any]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{path}: line {line}: must be UTF-8, got the byte 0x{error.object[error.start]:02x}"
        ) from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    tree = _sections(parse_yaml(text, where=str(path)), where=str(path))
    if not looks_like_verl(tree):
        return tree
    translation = from_verl(tree)
    for note in translation.notes:
        log.warning("%s: %s", path, note)
    return translation.config_tree


def _sections(tree: Any, *, where: str) -> Mapping[str, Any]:
    if tree is not None and not isinstance(tree, Mapping):
        raise ConfigError(f"{where}: must be a mapping of sections (model:, data:, ...), got {tree!r:.60}")
    return tree or {}


def _from_environment(environ: Mapping[str, str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for name, text in sorted(environ.items()):
        if name.startswith(ENVIRONMENT_PREFIX):
            keys = name.removeprefix(ENVIRONMENT_PREFIX).lower().split("__")
            if not all(keys):
                raise ConfigError(f"{name}: must name a key, {ENVIRONMENT_PREFIX}SECTION__KEY")
            yield name, _nested(keys, parse_yaml(text, where=name))


def _override(text: str) -> Mapping[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not all(part.strip() for part in key.split(".")):
        raise ConfigError(f"override: must be KEY=VALUE, got {text!r}")
    return _nested(key.strip().split("."), parse_yaml(value, where=f"override {key.strip()}"))


def _nested(keys: Sequence[str], value: Any) -> Mapping[str, Any]:
    for key in reversed(keys):
        value = {key: value}
    return value
