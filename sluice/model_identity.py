"""What services must agree on before weights or token ids are exchanged: hashes of model and tokenizer, the vocabulary."""

import json
from dataclasses import dataclass
from pathlib import Path

import blake3

from sluice.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelIdentity:
    """Hex hashes of a Hugging Face folder's config.json and tokenizer files."""

    model_hash: str
    tokenizer_hash: str


def model_identity(path: str | Path) -> ModelIdentity:
    """Hashes the folder's config.json and tokenizer.json. Raises ConfigError naming what is missing."""
    folder = Path(path)
    if not folder.is_dir():
        raise ConfigError(f"model.path: must be a Hugging Face model folder, {folder} is not a directory")
    return ModelIdentity(model_hash=_hash(folder / "config.json"), tokenizer_hash=_hash(folder / "tokenizer.json"))


def vocabulary_size(path: str | Path) -> int:
    """The number of the model's token ids: rows of its embedding, which may be more than its tokenizer knows.

    Raises ConfigError where config.json does not say.
    """
    config = Path(path) / "config.json"
    try:
        read = json.loads(config.read_bytes())
        size = read.get("text_config", read)["vocab_size"]
    except FileNotFoundError as error:
        raise ConfigError(f"model.path: {config.parent} has no config.json; save the model there") from error
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ConfigError(f"model.path: {config} is no JSON object with a vocab_size ({error})") from error
    if not isinstance(size, int) or size < 1:
        raise ConfigError(f"model.path: vocab_size of {config} must be a positive integer, got {size!r}")
    return size


def _hash(path: Path) -> str:
    try:
        return blake3.blake3(path.read_bytes()).hexdigest()
    except FileNotFoundError as error:
        raise ConfigError(f"model.path: {path.parent} has no {path.name}; save model and tokenizer there") from error
