"""`sluice ui`: runs in a browser, live or finished (docs/ui.md)."""

import argparse
import importlib.util
import socket
from pathlib import Path
from typing import Any

from sluice.addresses import is_loopback, joined
from sluice.errors import ConfigError, LaunchError
from sluice.rpc.service import add_credentials_flag

DEFAULT_PORT = 8050


def add_parser(commands: Any) -> None:
    """Adds `ui`."""
    ui = commands.add_parser(
        "ui",
        help="a run in a browser: curves, groups, services; live or finished, several at once",
        description="Serves pages about run directories and about a run that is up, on this machine alone unless --host says "
        "otherwise. Ends with Ctrl-C.",
    )
    ui.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="run directories, the first one first")
    ui.add_argument(
        "--coordinator", default="", metavar="HOST:PORT", help="a run that is up; with one RUN, its coordinator"
    )
    ui.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="where to listen (default %(default)s)")
    ui.add_argument("--port", type=int, default=DEFAULT_PORT, help="0 takes any free one (default %(default)s)")
    add_credentials_flag(ui)
    ui.set_defaults(run=run_ui)


def run_ui(args: argparse.Namespace) -> int:
    """Serves until it is interrupted. Raises SluiceError before anything listens."""
    missing = [name for name in ("nicegui", "duckdb", "pyarrow") if importlib.util.find_spec(name) is None]
    if missing:
        raise LaunchError(
            f"sluice ui: needs {', '.join(missing)}, of the extra `ui`; install it with pip install 'sluice-rl[ui]'"
        )
    if not args.runs and not args.coordinator:
        raise ConfigError("sluice ui: must be given a run: name a run directory, or --coordinator HOST:PORT")
    listening = _listening(args.host, args.port)
    port = listening.getsockname()[1]

    from sluice.ui.app import server_of
    from sluice.ui.gate import Tokens
    from sluice.ui.runs import open_runs

    runs = open_runs(args.runs, coordinator=args.coordinator, credentials=args.credentials)
    tokens = None if is_loopback(args.host) else Tokens()
    server = server_of(runs, host=args.host, port=port, tokens=tokens)
    for line in links(args.host, port, tokens):
        print(line, flush=True)
    server.run(sockets=[listening])
    return 0


def links(host: str, port: int, tokens: Any) -> list[str]:
    """What is printed: on loopback the address, beyond it a link for each role."""
    shown = socket.gethostname() if host in ("0.0.0.0", "::") else host
    address = f"http://{joined(shown, port)}"
    if tokens is None:
        return [f"{address}/"]
    return [
        f"{address}/?token={tokens.operator}  (with actions)",
        f"{address}/?token={tokens.reader}  (to look only)",
        "These links are not encrypted: on a network that others can read, leave out --host and use ssh -L "
        f"{port}:127.0.0.1:{port} instead.",
    ]


def _listening(host: str, port: int) -> socket.socket:
    """Raises LaunchError for an address that cannot be listened at, ConfigError for a port that is none."""
    if not 0 <= port < 65536:
        raise ConfigError(f"--port: must be 0 to 65535, got {port}")
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise LaunchError(
            f"sluice ui: cannot listen at {joined(host, port)}: {error.strerror or error}; --port 0 takes any free port"
        ) from error
