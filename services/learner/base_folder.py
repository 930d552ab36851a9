"""The folder of a base model that Sluice makes itself: made once, whole or not at all, never over somebody else's files.

A record in the folder says how the folder was made. The folder is left alone while its record has the wanted key and every
file still has the size that the record names; else the folder is made anew, aside, and put in place by a rename.
"""

import importlib.metadata
import json
import platform
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def make_once(
    out: Path,
    *,
    record_name: str,
    record: Mapping[str, Any],
    write: Callable[[Path], None],
    force: bool = False,
) -> bool:
    """Has `write` fill a folder that becomes `out`, unless `out` is up to date; returns whether `write` was called.

    `record` has a `key`, which changes with everything that changes the model. The record is kept in the file `record_name`.

    Raises ValueError when `out` is in the way: something that this function did not make with the same `record_name`.
    """
    recorded = _recorded(out / record_name)
    if not force and recorded is not None and recorded.get("key") == record["key"] and _is_whole(out, recorded):
        return False
    if out.exists() and (not out.is_dir() or any(out.iterdir())) and recorded is None:
        raise ValueError(f"base: {out} exists and is not a base model made here; give another --out")

    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as scratch:
        made = Path(scratch) / "made"
        write(made)
        files = {file.name: file.stat().st_size for file in sorted(made.iterdir())}
        whole_record = {**record, "versions": _versions(), "files": files}
        (made / record_name).write_text(json.dumps(whole_record, indent=2) + "\n")
        if out.exists():
            out.rename(Path(scratch) / "old")
        made.rename(out)
    return True


def _recorded(path: Path) -> Mapping[str, Any] | None:
    """The record; empty when the file is broken, None without a file."""
    if not path.is_file():
        return None
    try:
        recorded = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:  # a machine that lost power while writing
        return {}
    return recorded if isinstance(recorded, dict) else {}


def _is_whole(out: Path, recorded: Mapping[str, Any]) -> bool:
    """Whether every file of the record is there with its size; records of earlier versions name no files."""
    sizes: Mapping[str, int] = recorded.get("files", {})
    return all((out / name).is_file() and (out / name).stat().st_size == size for name, size in sizes.items())


def _versions() -> dict[str, str]:
    return {"python": platform.python_version()} | {
        name: importlib.metadata.version(name) for name in ("torch", "transformers", "tokenizers")
    }
