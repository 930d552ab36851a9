"""Which run a run directory holds: RUN/run.json, made once, so that two directories of one name share nothing in Redis.

A directory that is moved or renamed stays the same run. A copy beside its original is a run of its own from its first start
on: it finds no keys in a shared Redis and is repaired from its files (recovery/repair.py). A directory of an older version
has no such file; it keeps the keys that are called after the directory, unless they are another directory's.
"""

import asyncio
import json
import os
import secrets
from dataclasses import dataclass, replace
from pathlib import Path

import structlog

from services.coordinator.storage.redis_store import Store
from services.coordinator.storage.run_files import RunFiles
from sluice.errors import ConfigError, LaunchError
from sluice.run_dir.durable import write_synced

log = structlog.get_logger(__name__)

IDENTITY_FILE = "run.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Identity:
    """A run's names."""

    id: str
    """16 hex digits, random."""
    name: str
    """The directory's name when the run began; groups are called after it for ever."""
    unique: str
    """The name that no other run has, for loggers."""
    keys: str
    """The part of the names of the run's keys in Redis."""
    path: str
    """Where the directory lay at its newest start."""


async def identify(files: RunFiles, old: Store, *, own_redis: bool) -> Identity:
    """The directory's identity, made and written if there is none.

    `old` has the keys called after the directory, where a run of an older version lies. `own_redis`: Redis holds nothing but
    this run. Raises ConfigError for an unreadable file, LaunchError when Redis holds another directory's run of this name.
    """
    run_dir = files.run_dir.resolve()
    known = await asyncio.to_thread(_read, run_dir)
    if known is None:
        identity = _new(run_dir.name, run_dir)
        is_older = await asyncio.to_thread(files.hold_a_run)
        if is_older:  # its loggers know it by the directory's name
            identity = replace(identity, unique=run_dir.name)
        if await old.exists() and (own_redis or (is_older and await _is_ours(files, old))):
            identity = replace(identity, unique=run_dir.name, keys=run_dir.name)
    elif await asyncio.to_thread(_is_copy, run_dir, known):
        identity = _new(known.name, run_dir)
        identity = replace(identity, keys=known.keys) if own_redis else identity
        log.warning("run_directory_is_a_copy", of=known.path, id=identity.id)
    else:
        identity = replace(known, path=str(run_dir))
    if identity != known:
        await asyncio.to_thread(_write, run_dir, identity)
    return identity


def _new(name: str, run_dir: Path) -> Identity:
    new_id = secrets.token_hex(8)
    return Identity(id=new_id, name=name, unique=f"{name}-{new_id}", keys=f"{name}-{new_id}", path=str(run_dir))


def _read(run_dir: Path) -> Identity | None:
    """The written identity; None without a file. Raises ConfigError."""
    path = run_dir / IDENTITY_FILE
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        identity = Identity(**found)
        if not all(isinstance(value, str) and value for value in found.values()):
            raise ValueError("a value is empty or no text")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(
            f"{path}: must be the run's identity as Sluice wrote it, but {error}; put the file back from a copy of the "
            "directory, because Redis holds the run under the names in it"
        ) from error
    return identity


def _write(run_dir: Path, identity: Identity) -> None:
    line = {name: getattr(identity, name) for name in Identity.__dataclass_fields__}
    write_synced(run_dir / IDENTITY_FILE, [f"{json.dumps(line)}\n".encode()])


def _is_copy(run_dir: Path, known: Identity) -> bool:
    """Whether the directory in which the identity was made, or last found, is another one and still holds it."""
    try:
        if os.path.samefile(known.path, run_dir):
            return False
        original = _read(Path(known.path))
    except (OSError, ConfigError):
        return False
    return original is not None and original.id == known.id


async def _is_ours(files: RunFiles, old: Store) -> bool:
    """True when keys without an id are of the run in this directory. Raises LaunchError when they are another's."""
    if await old.owner() is None and await _agree(files, old):
        return True
    raise LaunchError(
        f"redis: the keys {old.prefix}* are of another run directory called {files.run_dir.name}, not of {files.run_dir}; "
        "give each a Redis of its own (network.redis_url: another server, or another database of this one), and this run "
        "goes on from its files and checkpoints"
    )


async def _agree(files: RunFiles, old: Store) -> bool:
    """Whether no record of Redis contradicts the files, which are written before Redis points to them."""
    if await old.rows_in_files() > await files.ledger_rows():
        return False
    steps = await asyncio.to_thread(files.batch_steps)
    for step in steps:
        record = await old.record("batch", step)
        if record is not None and record["digest"] != await files.batch_digest(step):
            return False
    newest = await old.last_step("batch")
    record = await old.record("batch", newest)
    return not steps or newest <= steps[-1] or record is None or files.is_staged(newest, record["digest"])
