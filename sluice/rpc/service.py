"""The flags that the command lines of reward, rollout and learner share, and the one way in which these services end.

Standard library alone, so that --help is instant.
"""

import argparse
import os
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from sluice.addresses import AUTO, EVERY_ADDRESS
from sluice.errors import SluiceError
from sluice.rpc.service_parser import ServiceParser

if TYPE_CHECKING:
    from sluice.rpc.credentials import Credentials

COORDINATOR_PORT, ROLLOUT_PORT, REWARD_PORT, LEARNER_PORT = 18050, 18051, 18052, 18053
"""Default ports, below those that Linux gives to outgoing connections (docs/adr/0010-default-ports.md). 0 takes any free port,
which the service registers with the coordinator."""

METRICS_PORT_OFFSET = 1000
"""The Prometheus port is the gRPC port plus this, unless --metrics-port says otherwise."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ServiceOptions:
    """The flags every service has."""

    coordinator: str
    """host:port."""
    bind: str
    advertise: str
    """Host at which other services reach this service."""
    port: int
    metrics_port: int
    service_id: str
    """Empty: the coordinator gives the service an id."""
    credentials: "Credentials" = field(repr=False)
    host: str = ""
    """The label of the machine that the service runs on (sluice/own_host.py)."""


Options = TypeVar("Options", bound=ServiceOptions)


def service_parser(
    name: str, description: str, *, port: int, needs_coordinator: bool = True
) -> argparse.ArgumentParser:
    """A parser with the flags of ServiceOptions and --log-format; `port` is the default of --port."""
    parser = ServiceParser(prog=f"python -m services.{name}", description=description)
    parser.add_argument(
        "--coordinator", required=needs_coordinator, default="", metavar="HOST:PORT", help="where the run is conducted"
    )
    add_bind_flag(parser, auto="from which it reaches --coordinator")
    parser.add_argument(
        "--advertise",
        metavar="HOST",
        help="where others reach it, like --bind (default: --bind; this machine's name where --bind is every address)",
    )
    parser.add_argument("--port", type=int, default=port, help="gRPC port; 0: any free one (default: %(default)s)")
    parser.add_argument("--metrics-port", type=int, help="Prometheus port; 0: any free one (default: port + 1000)")
    parser.add_argument(
        "--service-id", default="", help="name that outlives restarts (default: given by the coordinator)"
    )
    add_credentials_flag(parser)
    parser.add_argument("--log-format", choices=("console", "json"), default="console", help="default: %(default)s")
    parser.set_defaults(role=name)
    return parser


def add_bind_flag(parser: Any, *, auto: str) -> None:
    """Adds --bind; `auto` says which address of this machine is the default."""
    parser.add_argument(
        "--bind",
        default=AUTO,
        metavar="ADDRESS",
        help=f"what to listen on: an address, an interface (ib0), a CIDR, or auto, the address {auto} (default: auto)",
    )


def add_credentials_flag(parser: Any) -> None:
    """Adds --credentials: the folder with this process's certificate or tokens; a path, never a secret."""
    parser.add_argument(
        "--credentials",
        default=os.environ.get("SLUICE_CREDENTIALS", ""),
        metavar="DIR",
        help="folder of this role that `sluice certs` or `sluice tokens` made (environment SLUICE_CREDENTIALS)",
    )


def options_from(kind: type[Options], args: argparse.Namespace, **more: Any) -> Options:
    """The options that `service_parser` read, as `kind`; `more` are the fields that `kind` adds. Raises ConfigError.

    Finds this machine's addresses, which may take as long as the coordinator's name takes to be known.
    """
    from sluice.own_address import BIND, address_towards, advertised_address, own_address
    from sluice.own_host import own_host
    from sluice.rpc.access import Role
    from sluice.rpc.credentials import load_credentials

    auto = partial(address_towards, args.coordinator)
    bind = own_address(args.bind, auto=auto, key=BIND)
    return kind(
        coordinator=args.coordinator,
        bind=bind,
        advertise=advertised_address(args.advertise, bind=bind, auto=auto) if args.advertise else _name_behind(bind),
        port=args.port,
        metrics_port=metrics_port(args),
        service_id=args.service_id,
        credentials=load_credentials(args.credentials, role=Role(args.role)),
        host=own_host(),
        **more,
    )


def _name_behind(bind: str) -> str:
    """A host name under which others reach `bind`: for all interfaces the machine's own name."""
    return socket.gethostname() if bind in EVERY_ADDRESS else bind


def metrics_port(args: argparse.Namespace) -> int:
    """--metrics-port, else --port + 1000, else (for port 0) any free port."""
    if args.metrics_port is not None:
        return args.metrics_port
    return args.port + METRICS_PORT_OFFSET if args.port else 0


def exit_code(failure: BaseException, *, service: str = "") -> int:
    """Logs what ended a service and returns its exit code: 2 for a bad configuration, 1 for anything else.

    A named service says it as its last words too (`Child.last_words`), for the launcher to repeat.

    A failure that is not a SluiceError is a bug in Sluice and is raised again, with its traceback.
    """
    import structlog

    leaves = list(_leaves(failure))
    if not all(isinstance(leaf, SluiceError) for leaf in leaves):
        raise failure
    for leaf in leaves:
        structlog.get_logger().error("failed", reason=str(leaf))
    if service:
        sys.stderr.write(f"{service}: {'; '.join(dict.fromkeys(map(str, leaves)))}\n")
    return 2 if any(isinstance(leaf, ValueError) for leaf in leaves) else 1


def _leaves(failure: BaseException) -> Iterator[BaseException]:
    """The errors within nested exception groups."""
    if isinstance(failure, BaseExceptionGroup):
        for inner in failure.exceptions:
            yield from _leaves(inner)
    else:
        yield failure
