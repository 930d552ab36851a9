"""structlog set-up, once per process: JSON for machines, console for people, to stderr, without secrets.

Lines are left out while the disk of stderr's file is full.
"""

import logging
import sys
from typing import Literal, TextIO, cast

import structlog

from sluice.telemetry.full_disk_stream import FullDiskStream
from sluice.telemetry.redaction import redacted

LogFormat = Literal["console", "json"]


def configure_logs(*, service: str, fmt: LogFormat = "console", level: str = "info") -> None:
    """Sets logging up and binds the service's name to every line; standard-library loggers are shown from WARNING on."""
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(service=service)
    renderer = (
        structlog.processors.JSONRenderer()
        if fmt == "json"
        else structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(),
            pad_event_to=24,
            exception_formatter=structlog.dev.plain_traceback,  # the default shows all variables, and takes .2 s an error
        )
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *([structlog.processors.format_exc_info] if fmt == "json" else []),
            renderer,
            lambda _logger, _level, line: redacted(str(line)),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(cast("TextIO", FullDiskStream(sys.stderr))),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(FullDiskStream(sys.stderr))
    handler.setFormatter(_RedactingFormatter("%(asctime)s %(name)s %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])


class _RedactingFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return redacted(super().format(record))
