"""`network.bind` and `network.advertise` in words, and what they stand for where a process starts."""

import os
import socket

import pytest

from sluice import interfaces as reading
from sluice import own_address
from sluice.addresses import loopback, loopback_interface
from sluice.errors import ConfigError
from sluice.interfaces import interface_of, interfaces, prefer_for_nccl, route_to
from sluice.own_address import address_towards, advertised_address, network_address
from sluice.rpc.service import ServiceOptions, options_from, service_parser

NODE = {"lo": ["127.0.0.1", "::1"], "docker0": ["172.17.0.1"], "ib0": ["10.1.4.7", "fd00::7"], "ib1": []}


@pytest.fixture
def _node(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node with interfaces that a test can name."""
    for module in (reading, own_address):
        monkeypatch.setattr(module, "interfaces", lambda: NODE)


def served(*flags: str, coordinator: str = "127.0.0.1:18050") -> tuple[str, str]:
    """What a service listens on and says."""
    args = service_parser("reward", "A service.", port=0).parse_args(["--coordinator", coordinator, *flags])
    options = options_from(ServiceOptions, args)
    return options.bind, options.advertise


def test_by_default_a_service_is_where_its_coordinator_reaches_it() -> None:
    own = network_address()  # loopback on a machine without a network
    for coordinator, expected in (("127.0.0.1:1", loopback()), ("localhost:1", loopback()), (f"{own}:1", own)):
        assert served(coordinator=coordinator) == (expected, expected)
        assert served("--bind", "0.0.0.0", "--advertise", "auto", coordinator=coordinator) == ("0.0.0.0", expected)
    assert address_towards("127.0.0.9:1") == loopback()  # nodes of a test cluster: all the same machine


@pytest.mark.usefixtures("_node")
@pytest.mark.parametrize(
    ("words", "address"),
    [
        ("ib0", "10.1.4.7"),
        ("lo", "127.0.0.1"),
        ("10.1.0.0/16", "10.1.4.7"),
        ("10.1.9.9/16", "10.1.4.7"),
        ("fd00::/8", "fd00::7"),
        ("0.0.0.0/0", "172.17.0.1"),
        ("10.9.9.9", "10.9.9.9"),
        ("::", "::"),
        ("localhost", "localhost"),
        ("node7.cluster", "node7.cluster"),
    ],
)
def test_an_interface_or_a_network_stands_for_the_nodes_own_address_in_it(words: str, address: str) -> None:
    assert served("--bind", words, "--advertise", words) == (address, address)
    assert served("--bind", "0.0.0.0", "--advertise", words)[1] == address
    if address not in ("0.0.0.0", "::"):
        assert served("--bind", words, "--advertise", "auto") == (address, address)


@pytest.mark.usefixtures("_node")
@pytest.mark.parametrize("flag", ["--bind", "--advertise"])
@pytest.mark.parametrize("words", ["ib7", "ib1", "192.168.0.0/24"])
def test_what_a_node_has_not_is_refused_in_one_line_that_names_what_it_has(flag: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        served("--bind", "0.0.0.0", flag, words)
    said = str(caught.value)
    assert said.startswith(f"network.{flag.removeprefix('--')} ({flag}): must be auto, an interface, a CIDR")
    assert (
        f"{socket.gethostname()} has, got {words}; there are lo 127.0.0.1 ::1, docker0 172.17.0.1, ib0 10.1.4.7" in said
    )
    assert "\n" not in said


def test_a_coordinator_that_no_route_leads_to_is_refused_at_the_limit() -> None:
    with pytest.raises(ConfigError, match=r"reaches no\.such\.host\.invalid:1, and no route leads there: .*; name an"):
        address_towards("no.such.host.invalid:1", patience_s=0.0)


def test_interfaces_are_those_of_the_machine() -> None:
    lo = loopback_interface()
    assert loopback() in interfaces()[lo]
    assert interface_of(loopback()) == lo
    assert interface_of("203.0.113.77") == ""
    assert interface_of(route_to("localhost")) == lo
    own = network_address()
    assert interface_of(own), "the address of the default route belongs to an interface"


@pytest.mark.usefixtures("_node")
def test_without_a_default_route_the_only_network_is_taken_and_several_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def nowhere(host: str) -> str:
        raise OSError(101, "Network is unreachable")

    monkeypatch.setattr(own_address, "route_to", nowhere)
    with pytest.raises(ConfigError, match=r"no default route .* several interfaces, docker0 172.17.0.1, ib0 10.1.4.7"):
        network_address()
    for there, expected in (({"lo": ["127.0.0.1"], "ib0": ["10.1.4.7"]}, "10.1.4.7"), ({"lo": ["::1"]}, loopback())):
        monkeypatch.setattr(own_address, "interfaces", lambda there=there: there)
        assert network_address() == expected


@pytest.mark.usefixtures("_node")
def test_nccl_takes_the_interface_of_the_advertised_address_unless_told_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "")  # so that it is taken away again
    monkeypatch.delenv("NCCL_SOCKET_IFNAME")
    for address in ("127.0.0.1", "node7", "10.9.9.9"):
        prefer_for_nccl(address)
        assert "NCCL_SOCKET_IFNAME" not in os.environ
    prefer_for_nccl(advertised_address("auto", bind="10.1.4.7", auto=loopback))
    assert os.environ["NCCL_SOCKET_IFNAME"] == "=ib0"
    prefer_for_nccl("172.17.0.1")
    assert os.environ["NCCL_SOCKET_IFNAME"] == "=ib0"
