"""`sluice ui`: runs in a browser, live or finished (docs/ui.md)."""

import argparse
import contextlib
import importlib.util
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sluice.addresses import is_address, is_loopback, joined, loopback
from sluice.errors import ConfigError, LaunchError
from sluice.process.child import armed, module_command
from sluice.rpc.service import add_credentials_flag

DEFAULT_PORT = 8050
END_S = 5.0
"""How long the page of a run that has ended may take to end."""
_NAME = re.compile(r"(?=.{1,253}$)(?=.*[A-Za-z])[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*")
"""Of a machine: a letter somewhere, because `0` and `127.1` are addresses in a form that no link has."""

CLOCK_SLACK_S = 5.0
"""Of a file system's clock against this machine's."""


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
    ui.add_argument("--listen-fd", type=int, help=argparse.SUPPRESS)  # `sluice up` has made the socket,
    ui.add_argument("--begun-s", type=float, default=0.0, help=argparse.SUPPRESS)  # and began at this Unix time
    add_credentials_flag(ui)
    ui.set_defaults(run=run_ui)


def run_ui(args: argparse.Namespace) -> int:
    """Serves until it is interrupted. Raises SluiceError before anything listens."""
    _needs_extra("sluice ui")
    if not args.runs and not args.coordinator:
        raise ConfigError("sluice ui: must be given a run: name a run directory, or --coordinator HOST:PORT")
    if args.listen_fd is None:
        listening = _listening(args.host, args.port)
    else:
        listening = socket.socket(fileno=args.listen_fd)
        _wait_for(args.runs[0], begun_s=args.begun_s)
        _log_to(args.runs[0] / "logs" / "ui.log")
    port = listening.getsockname()[1]

    from sluice.ui.gate import Tokens
    from sluice.ui.runs import open_runs

    starts = args.listen_fd is not None
    runs = open_runs(args.runs, coordinator=args.coordinator, credentials=args.credentials, starts=starts)

    from sluice.ui.app import server_of

    tokens = None if is_loopback(args.host) else Tokens()
    server = server_of(runs, host=args.host, port=port, tokens=tokens)
    for line in links(args.host, port, tokens) if not starts else ():
        print(line, flush=True)
    server.run(sockets=[listening])
    return 0


@contextlib.contextmanager
def beside(config: Any, run_dir: Path, say: Callable[[str], None]) -> Iterator[None]:
    """The page of a run that begins, where `run.ui` asks for it; says its address first. Ends with the run.

    The socket is made here, so that its address holds from the first line on; the page answers once the coordinator is up.
    Raises LaunchError without the extra.
    """
    if not config.run.ui:
        yield
        return
    _needs_extra("run.ui")
    try:
        listening = _listening(loopback(), DEFAULT_PORT)
    except LaunchError:
        listening = _listening(loopback(), 0)
    with listening:
        host, port = listening.getsockname()[:2]
        say(f"the run's page: {links(host, port, None)[0]}")
        flags = ["ui", str(run_dir), "--listen-fd", str(listening.fileno()), "--begun-s", f"{time.time():.3f}"]
        command = [*armed(signal.SIGTERM), *module_command("sluice.cli.main"), *flags]
        page = subprocess.Popen(
            command, pass_fds=[listening.fileno()], stdin=subprocess.DEVNULL, start_new_session=True
        )
    try:
        yield
    finally:
        page.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            page.wait(END_S)
        page.kill()
        page.wait()


def _needs_extra(what: str) -> None:
    missing = [name for name in ("nicegui", "duckdb", "pyarrow") if importlib.util.find_spec(name) is None]
    if missing:
        raise LaunchError(
            f"{what}: needs {', '.join(missing)}, of the extra `ui`; install it with pip install 'sluice-rl[ui]'"
        )


def _wait_for(run_dir: Path, *, begun_s: float) -> None:
    """Returns when the run has written where its coordinator is now; who started this process ends it otherwise."""
    from sluice.run_dir.naming import ADDRESS_FILE

    said = run_dir / ADDRESS_FILE
    while not (said.exists() and said.stat().st_mtime >= begun_s - CLOCK_SLACK_S):
        time.sleep(0.2)


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


def _log_to(path: Path) -> None:
    """What this process says goes to the run's logs, not into the launcher's view, unless the disk is full."""
    from sluice.run_dir.private import make_private_folder, open_private

    with contextlib.suppress(OSError):
        make_private_folder(path.parent)
        with open_private(path, "ab") as file:
            for stream in (1, 2):
                os.dup2(file.fileno(), stream)


def _listening(host: str, port: int) -> socket.socket:
    """Raises LaunchError for an address that cannot be listened at, ConfigError for a port or an address that is none."""
    if not is_address(host) and not _NAME.fullmatch(host):
        raise ConfigError(
            f"--host: must be an address or a name of this machine, without port, brackets or http://, such as 127.0.0.1, "
            f"0.0.0.0, :: or node-3, got {host[:100]!r}"
        )
    if not 0 <= port < 65536:
        raise ConfigError(f"--port: must be 0 to 65535, got {port}")
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise LaunchError(
            f"sluice ui: cannot listen at {joined(host, port)}: {_why(error)}; --port 0 takes any free port"
        ) from error


def _why(error: OSError) -> str:
    """In the system's words alone; socket.create_server adds some of its own."""
    return os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
