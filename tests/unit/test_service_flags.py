"""The flags that reward, rollout and learner share."""

import pytest

from sluice.errors import ConfigError, LaunchError
from sluice.rpc.service import ServiceOptions, exit_code, options_from, service_parser


def read(*argv: str) -> ServiceOptions:
    parser = service_parser("reward", "A service.", port=50052)
    return options_from(ServiceOptions, parser.parse_args(["--coordinator", "host:50050", *argv]))


def test_ports_default_to_the_documented_ones_and_advertise_to_bind() -> None:
    options = read("--bind", "10.0.0.1")
    assert (options.port, options.metrics_port, options.advertise) == (50052, 51052, "10.0.0.1")


def test_any_free_port_means_any_free_metrics_port() -> None:
    assert read("--port", "0").metrics_port == 0
    assert read("--port", "0", "--metrics-port", "9000").metrics_port == 9000


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (LaunchError("no"), 1),
        (ConfigError("no"), 2),
        (ExceptionGroup("tasks", [ExceptionGroup("inner", [ConfigError("no")])]), 2),
    ],
)
def test_a_bad_configuration_exits_with_2_and_anything_else_with_1(failure: Exception, code: int) -> None:
    assert exit_code(failure) == code


def test_a_bug_is_raised_again_with_its_traceback() -> None:
    bug = ExceptionGroup("tasks", [KeyError("bug")])
    with pytest.raises(ExceptionGroup) as raised:
        exit_code(bug)
    assert raised.value is bug
