"""A run directory as the views ask for it: each file is read anew when it has changed, and never written.

For threads other than the event loop's. What is damaged or absent is named in a sentence that says what to do.
"""

import json
import os
import threading
from pathlib import Path
from typing import Any

from sluice.config.load import parse_config
from sluice.config.schema import Config
from sluice.errors import NotFound, SluiceError
from sluice.report.metrics import METRICS_FILE, RunMetrics, metrics_of
from sluice.report.summary import SUMMARY_FILE
from sluice.run_dir.json_lines import JsonObject
from sluice.ui.evaluations import Evaluations
from sluice.ui.ledger import Ledger

_MARKS = ("config.yaml", METRICS_FILE, SUMMARY_FILE, "ledger", "run.json")
"""What a run directory has at least one of."""


def check_run_dir(path: Path) -> None:
    """Raises NotFound for a folder that is no run."""
    if not path.is_dir():
        raise NotFound(
            f"{path}: no such run directory; name one that `sluice up` has made, such as runs/NAME-DATE-TIME-XXXX"
        )
    if not any((path / mark).exists() for mark in _MARKS):
        inside = [one for one in sorted(path.iterdir()) if (one / "config.yaml").is_file()][:3]
        fix = f"; did you mean {', '.join(map(str, inside))}?" if inside else "; name one that `sluice up` has made"
        raise NotFound(f"{path}: is no run directory, it has none of {', '.join(_MARKS)}{fix}")


class RunFiles:
    """One run directory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ledger = Ledger(path)
        self.evaluations = Evaluations(path)
        self._lock = threading.Lock()
        self._lines: list[JsonObject] = []
        self._read_bytes = 0
        self._first = b""
        self._number = 0
        """The file's inode: a thinned file is another one."""
        self._torn = 0
        self._metrics: RunMetrics | None = RunMetrics(steps=(), evaluations=(), torn_lines=0)
        self._config: tuple[int, Config] | None = None

    def metrics(self) -> RunMetrics:
        """The metrics in metrics.jsonl, of which only what was appended since the last call is read. Raises NotFound
        for another file.
        """
        with self._lock:
            if self._append():
                self._metrics = None
            if self._metrics is None:  # a damaged file is named whenever somebody asks
                try:
                    path = self.path / METRICS_FILE
                    self._metrics = metrics_of(self._lines, path=path, torn_lines=self._torn)
                except (ValueError, KeyError) as error:
                    raise NotFound(f"{error}; the file is none of Sluice's") from error
            return self._metrics

    def _append(self) -> bool:
        """Reads the lines behind the last one read; all of them where the file was thinned. Whether there were any."""
        path = self.path / METRICS_FILE
        try:
            with path.open("rb") as file:
                first, number = file.read(200), os.fstat(file.fileno()).st_ino
                size = file.seek(0, 2)
                is_same = number == self._number and first.startswith(self._first[: len(first)])
                if size < self._read_bytes or not is_same:
                    self._lines, self._read_bytes, self._torn, self._number = [], 0, 0, number
                file.seek(self._read_bytes)
                body = file.read()
        except (FileNotFoundError, NotADirectoryError):  # not yet, or not any more: what was read stays
            return False
        except OSError as error:
            raise NotFound(f"{path}: cannot be read: {error}") from error
        whole = body[: body.rfind(b"\n") + 1]
        if not whole:
            return False
        self._first, self._read_bytes = first, self._read_bytes + len(whole)
        for line in whole.splitlines():
            try:
                value = json.loads(line)
            except ValueError:
                value = None
            if isinstance(value, dict):
                self._lines.append(value)
            elif line.strip():
                self._torn += 1
        return True

    def config(self) -> Config:
        """The configuration in config.yaml. Raises NotFound for a file that is absent, or that this version cannot
        read.
        """
        path = self.path / "config.yaml"
        try:
            stamp = path.stat().st_mtime_ns
            if self._config is None or self._config[0] != stamp:
                self._config = stamp, parse_config(path.read_text(encoding="utf-8"), where=str(path))
        except (OSError, UnicodeDecodeError) as error:
            raise NotFound(f"{path}: cannot be read: {error}") from error
        except SluiceError as error:
            raise NotFound(f"{path}: was not written by this version of Sluice: {error}") from error
        return self._config[1]

    def summary(self) -> dict[str, Any] | None:
        """summary.json of a run that has ended; None before, and for a damaged file."""
        try:
            value = json.loads((self.path / SUMMARY_FILE).read_bytes())
        except (OSError, ValueError):
            return None
        return value if isinstance(value, dict) else None
