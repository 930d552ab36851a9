"""RUN/tensorboard: event files, one a coordinator's process. Needs the package tensorboard, not torch, not TensorFlow."""

import importlib
from pathlib import Path
from typing import Any

from services.coordinator.loggers.line import Line


class TensorBoardLogger:
    """Scalars by catalogue name. After a rollback readers drop later places of older files."""

    def __init__(self, folder: Path, *, trained_steps: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._events: Any = importlib.import_module("tensorboard.compat.proto.event_pb2")
        self._summaries: Any = importlib.import_module("tensorboard.compat.proto.summary_pb2")
        writers: Any = importlib.import_module("tensorboard.summary.writer.event_file_writer")
        self._file = writers.EventFileWriter(str(folder))
        start = self._events.SessionLog(status=self._events.SessionLog.START)
        self._file.add_event(self._events.Event(step=trained_steps + 1, session_log=start))

    def write(self, line: Line) -> None:
        """Writes one event with all values."""
        values = [self._summaries.Summary.Value(tag=name, simple_value=value) for name, value in line.values.items()]
        summary = self._summaries.Summary(value=values)
        self._file.add_event(self._events.Event(wall_time=line.time_s, step=line.trained_steps, summary=summary))
        self._file.flush()

    def close(self) -> None:
        """Flushes the event file."""
        self._file.close()
