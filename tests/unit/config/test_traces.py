"""Where `telemetry.traces` may point, and what is said where the way there is not installed."""

import sys

import pytest

from sluice.config.load import load_config
from sluice.config.traces import check_traces, collector_of
from sluice.errors import ConfigError

NEEDED = ("model.path=m", "data.train_files=[mixadd3:train]")


@pytest.mark.parametrize("place", ["collector:4317", "127.0.0.1:1", "[::1]:65535", "otel.ns.svc.cluster.local:4317"])
def test_a_collector_is_a_host_and_a_port(place: str) -> None:
    config = load_config(None, overrides=[*NEEDED, f"telemetry.traces='otlp://{place}'"])
    assert config.telemetry.traces is not None
    assert collector_of(config.telemetry.traces) == place
    check_traces(config)


@pytest.mark.parametrize(
    "traces",
    [
        *(
            "http://collector:4317",
            "collector:4317",
            "otlp://collector",
            "otlp://:4317",
            "otlp://c:0",
            "otlp://c:65536",
        ),
        *("otlp://c:4317/v1/traces", "otlp://u:p@c:4317", "otlp://c:x", "files", "FILE", ""),
    ],
)
def test_what_is_no_place_for_spans_is_refused_in_one_line(traces: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, overrides=[*NEEDED, f"telemetry.traces='{traces}'"])
    (line,) = str(caught.value).splitlines()
    assert "telemetry.traces: must be file or otlp://HOST:PORT, with a port from 1 to 65535, got" in line


@pytest.mark.parametrize("sample", ["0", "1.5", "-0.1"])
def test_a_share_of_no_groups_or_of_more_than_all_is_refused(sample: str) -> None:
    with pytest.raises(ConfigError, match=r"telemetry\.trace_sample"):
        load_config(None, overrides=[*NEEDED, f"telemetry.trace_sample={sample}"])


def test_a_collector_without_the_package_is_refused_and_a_file_needs_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("opentelemetry")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "opentelemetry", None)  # what Python itself keeps for "not there"
    config = load_config(None, overrides=[*NEEDED, "telemetry.traces='otlp://c:4317'"])
    with pytest.raises(ConfigError) as caught:
        check_traces(config)
    (line,) = str(caught.value).splitlines()
    assert line.startswith("telemetry.traces: otlp://c:4317 needs OpenTelemetry's exporter")
    assert "pip install 'sluice-rl[traces]'" in line
    check_traces(load_config(None, overrides=[*NEEDED, "telemetry.traces=file"]))
    check_traces(load_config(None, overrides=[*NEEDED]))
