"""Where the published file comes from: this machine, or the Hugging Face hub.

Waits: for the hub, with the time limits and retries of huggingface_hub (half a minute where there is no network).
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from services.coordinator.data_prep.published import HUB, Published
from sluice.errors import DataError, LaunchError, Unavailable


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """The published file, on this machine."""

    path: Path
    revision: str | None
    """The hub's commit of a fetched file; None for a file of this machine."""

    def sha256(self) -> str:
        """SHA-256 of the file's bytes, in hexadecimal."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def local_source(published: Published, given: Path) -> Source:
    """The given file, or the file with the published name in a given folder or clone. Raises DataError."""
    candidates = [given] if given.is_file() else [given / published.file_name, given / published.path]
    for path in candidates:
        if path.is_file():
            return Source(path=path, revision=None)
    raise DataError(f"--source: must be {published.file_name} or a folder that has it, {given} is neither")


def fetched_source(published: Published, *, revision: str | None) -> Source:
    """The file from the hub, or from the hub's cache on this machine. `revision` is a commit or a branch; None: the newest.

    Raises:
        LaunchError: huggingface_hub is not installed.
        Unavailable: the hub cannot be reached or does not have the file.
    """
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.utils import logging as hub_logging
    except ModuleNotFoundError as error:
        raise LaunchError(
            f"data prepare: {published.name} comes from {HUB}, which needs the package `huggingface_hub` ({error}); "
            f"install it with `pip install 'sluice-rl[data]'`, or fetch the file yourself. {published.by_hand()}"
        ) from error
    hub_logging.set_verbosity_error()  # otherwise each retry would log a warning
    try:
        path = Path(hf_hub_download(published.repository, published.path, repo_type="dataset", revision=revision))
    except Exception as error:  # the hub's errors and its HTTP client's, which differ by version
        reason = f"{type(error).__name__}: {error.__cause__ or error}".splitlines()[0]
        raise Unavailable(
            f"data prepare: {published.repository} could not be fetched from {HUB} ({reason}). {published.by_hand()}"
        ) from error
    # .../snapshots/COMMIT/<path in the repository>
    return Source(path=path, revision=path.parents[len(Path(published.path).parts) - 1].name)
