"""The flags that reward, rollout and learner share."""

import socket

import pytest

from sluice.cli.control import DEFAULT_COORDINATOR
from sluice.config.schema import NetworkConfig
from sluice.errors import ConfigError, LaunchError
from sluice.rpc.service import (
    COORDINATOR_PORT,
    LEARNER_PORT,
    METRICS_PORT_OFFSET,
    REWARD_PORT,
    ROLLOUT_PORT,
    ServiceOptions,
    exit_code,
    options_from,
    service_parser,
)
from sluice.rpc.service_parser import ServiceParser


def read(*argv: str) -> ServiceOptions:
    parser = service_parser("reward", "A service.", port=18052)
    return options_from(ServiceOptions, parser.parse_args(["--coordinator", "127.0.0.1:18050", *argv]))


def test_ports_default_to_the_documented_ones_and_advertise_to_bind() -> None:
    options = read("--bind", "10.0.0.1")
    assert (options.port, options.metrics_port, options.advertise) == (18052, 19052, "10.0.0.1")


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


def test_an_address_that_is_every_address_is_advertised_by_name() -> None:
    assert read("--bind", "0.0.0.0").advertise == socket.gethostname()


def parser_with(**environ: str) -> ServiceParser:
    parser = ServiceParser(environ=environ)
    parser.add_argument("--port", type=int, default=1)
    parser.add_argument("--log-format", choices=("console", "json"), default="console")
    parser.add_argument("--reopen", action="store_true")
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    parser.add_argument("--coordinator", required=True)
    return parser


def test_every_kind_of_flag_comes_from_the_environment_and_the_command_line_wins() -> None:
    parser = parser_with(
        SLUICE_PORT="7", SLUICE_LOG_FORMAT="json", SLUICE_REOPEN="1", SLUICE_SET="a=1\nb=2", SLUICE_COORDINATOR="host:1"
    )
    from_environment = {"port": 7, "log_format": "json", "reopen": True, "overrides": ["a=1", "b=2"]}
    assert vars(parser.parse_args([])) == from_environment | {"coordinator": "host:1"}
    args = parser.parse_args(["--port", "8", "--set", "c=3"])
    assert (args.port, args.overrides) == (8, ["a=1", "b=2", "c=3"])


def test_an_empty_variable_is_none() -> None:
    args = parser_with(SLUICE_PORT="", SLUICE_REOPEN="", SLUICE_SET="").parse_args(["--coordinator", "host:1"])
    assert (args.port, args.reopen, args.overrides) == (1, False, [])


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"SLUICE_PORT": "abc"}, "SLUICE_PORT"),
        ({"SLUICE_LOG_FORMAT": "xml"}, "SLUICE_LOG_FORMAT"),
        ({"SLUICE_REOPEN": "maybe"}, "SLUICE_REOPEN: must be 1 or 0"),
        ({"SLUICE_COORDINATOR": ""}, "--coordinator"),
    ],
)
def test_a_variable_that_cannot_be_understood_is_named(
    environ: dict[str, str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        parser_with(**environ).parse_args([] if "SLUICE_COORDINATOR" in environ else ["--coordinator", "host:1"])
    assert (end.value.code, said in capsys.readouterr().err) == (2, True)


def test_help_names_the_variable_of_a_flag() -> None:
    assert "[SLUICE_LOG_FORMAT]" in parser_with().format_help()


def test_the_default_ports_are_none_that_the_kernel_gives_to_outgoing_connections() -> None:
    for port in (COORDINATOR_PORT, ROLLOUT_PORT, REWARD_PORT, LEARNER_PORT, NetworkConfig().coordinator_port):
        assert 1024 <= port < port + METRICS_PORT_OFFSET < 32768  # ip(7), ip_local_port_range


def test_what_names_the_coordinator_by_default_names_the_default_port() -> None:
    assert NetworkConfig().coordinator_port == COORDINATOR_PORT
    assert f"127.0.0.1:{COORDINATOR_PORT}" == DEFAULT_COORDINATOR
