"""Snapshots as files, for receivers that no collective reaches: an ordinary safetensors file with the manifest in the
file's metadata, written under a temporary name and renamed, verified by digest when read."""

import io
import json
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from sluice.errors import TransferError
from sluice.policy_version import PolicyVersion
from sluice.run_dir.full_disk import located
from sluice.weights import staging
from sluice.weights.manifest import Manifest, plan
from sluice.weights.snapshot import Packer, Snapshot

_UNFINISHED = ".tmp"

_HEADER_BYTES = 100_000_000
"""Longest header, as safetensors itself has it."""

_NAME_OF_SAFETENSORS_DTYPE = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


def write_snapshot(directory: Path, snapshot: Snapshot, *, anew: bool = False) -> Path:
    """Writes `<lineage><number>-<digest>.safetensors` unless the file exists; returns the path. After an OSError no file is
    left.

    `anew` also writes over a file of that name: the file of an earlier process may be torn, because files are not synced.
    """
    manifest = snapshot.manifest
    path = path_of(directory, manifest)
    if path.exists() and not anew:
        return path
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {
        # Pointers into the snapshot's buffer, which outlives this call.
        spec.name: safetensors.TensorSpec(
            dtype=spec.dtype, shape=list(spec.shape), data_ptr=view.ctypes.data, data_len=view.nbytes
        )
        for spec, view in snapshot.tensors()
    }
    facts = {
        "lineage": manifest.version.lineage,
        "number": manifest.version.number,
        "bucket_bytes": manifest.bucket_bytes,
        "digest": manifest.digest,
    }
    temporary = path.with_suffix(f".{os.getpid()}{_UNFINISHED}")
    try:
        safetensors.serialize_file(tensors, str(temporary), {"sluice": json.dumps(facts)})
        os.replace(temporary, path)
    except (OSError, safetensors.SafetensorError) as error:  # safetensors turns an OSError into its own
        temporary.unlink(missing_ok=True)
        found = located(error, directory, sum(spec.size_bytes for spec in manifest.tensors))
        raise found if isinstance(found, OSError) else OSError(str(error)) from error
    return path


def path_of(directory: Path, manifest: Manifest) -> Path:
    """The path at which `write_snapshot` writes a version."""
    return directory / f"{manifest.version}-{manifest.digest[:16]}.safetensors"


def prune(directory: Path, *, keep: Collection[Path]) -> None:
    """Removes the snapshots in `directory` but for `keep`, and the unfinished files of killed writers. Raises OSError."""
    for path in (*directory.glob("*.safetensors"), *directory.glob(f"*{_UNFINISHED}")):
        if path not in keep:
            path.unlink(missing_ok=True)


def read_snapshot(path: Path) -> Snapshot:
    """Reads a snapshot straight into staged memory, without holding Python's lock, and verifies the bytes.

    Raises TransferError when the file is absent, torn, foreign or altered. A file is read and not mapped, because a mapping of
    a file that another machine cuts off ends the process.
    """
    try:
        with path.open("rb", buffering=0) as file:
            size_bytes = os.fstat(file.fileno()).st_size
            header = _read_header(file, size_bytes=size_bytes)
            facts = json.loads(header.pop("__metadata__")["sluice"])
            starts = {name: entry["data_offsets"][0] for name, entry in header.items()}
            named = [
                (name, _NAME_OF_SAFETENSORS_DTYPE[entry["dtype"]], entry["shape"]) for name, entry in header.items()
            ]
            layout = plan(named, bucket_bytes=facts["bucket_bytes"])
            if (wanted := sum(spec.size_bytes for spec in layout.tensors)) > size_bytes:
                raise ValueError(f"tensors of {wanted} bytes in a file of {size_bytes}")
            packer, data_at = Packer(layout, staging.new(layout.total_bytes)), file.tell()
            for spec in layout.tensors:
                file.seek(data_at + starts[spec.name])
                _fill(file, packer.room(spec.name))
        snapshot = packer.seal(PolicyVersion(lineage=facts["lineage"], number=facts["number"]))
    except (OSError, LookupError, TypeError, AttributeError, ValueError) as error:
        raise TransferError(f"{path}: not a readable weight snapshot: {error!r}") from error
    if snapshot.manifest.digest != facts["digest"]:
        raise TransferError(
            f"{path}: digest is {snapshot.manifest.digest[:16]}..., recorded was {facts['digest'][:16]}..."
        )
    return snapshot


def _read_header(file: io.FileIO, *, size_bytes: int) -> dict[str, Any]:
    """The header of a safetensors file: 8 bytes of length, then JSON, then the tensors."""
    length = int.from_bytes(file.read(8), "little")
    if length > min(size_bytes, _HEADER_BYTES):
        raise ValueError(f"a header of {length} bytes in a file of {size_bytes}")
    header = json.loads(file.read(length))
    if not isinstance(header, dict):
        raise ValueError("a header that is no JSON object")
    return header


def _fill(file: io.FileIO, room: np.ndarray) -> None:
    """Fills uint8[n] from the file."""
    left = room.data
    while left:
        count = file.readinto(left)
        if not count:
            raise ValueError(f"the file ends {len(left)} bytes before a tensor does")
        left = left[count:]
