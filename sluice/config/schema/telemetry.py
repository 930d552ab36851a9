"""`telemetry`: traces."""

import re
from collections.abc import Iterator
from typing import Final

from pydantic import Field

from sluice.config.schema.section import Section

FILE: Final = "file"
COLLECTOR: Final = "otlp://"

_ADDRESS = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})")


class TelemetryConfig(Section):
    """Traces (docs/monitoring.md#traces). Metrics and logs have their keys in `network` and `run`."""

    traces: str | None = Field(
        default=None,
        description="where spans go: otlp://HOST:PORT, a collector's OTLP receiver for gRPC (unencrypted; needs the extra "
        "traces), or file, RUN/traces/*.jsonl; default: nowhere, at no cost",
    )
    trace_sample: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="share of the groups that are traced, chosen by the group's id, and of an evaluation's prompts",
    )

    def problems(self) -> Iterator[str]:
        """Refuses what is no place for spans."""
        if self.traces is not None and self.traces != FILE and not _is_collector(self.traces):
            yield (
                f"traces: must be file or otlp://HOST:PORT, with a port from 1 to 65535, got {self.traces[:200]!r}; collectors "
                "listen for OTLP over gRPC on port 4317"
            )


def _is_collector(where: str) -> bool:
    found = _ADDRESS.fullmatch(where.removeprefix(COLLECTOR)) if where.startswith(COLLECTOR) else None
    return found is not None and 1 <= int(found[2]) <= 65535
