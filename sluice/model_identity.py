"""The identity of a service's model and tokenizer: hashes that must agree before weights or token ids are exchanged."""

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


def _hash(path: Path) -> str:
    try:
        return blake3.blake3(path.read_bytes()).hexdigest()
    except FileNotFoundError as error:
        raise ConfigError(f"model.path: {path.parent} has no {path.name}; save model and tokenizer there") from error
