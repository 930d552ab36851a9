"""The `sluice` command. Parses the flags before importing anything heavy, so that --help is instant."""

import argparse
import importlib
import io
import os
import select
import sys
from collections.abc import Sequence
from typing import Any

from sluice import __version__

VERBS = (
    *(
        "up",
        "submit",
        "demo_llm",
        "demo_turns",
        "watch",
        "logs",
        "learner_node",
        "control",
        "evaluate",
        "groups",
        "rollback",
        "ledger",
    ),
    *("report", "export", "replay", "rescore", "conformance", "config", "data", "agent", "certs", "ui"),
)
"""Modules of this package, in the order of `sluice --help`; some have several verbs."""

_MOST_OF_A_PATH = 200
"""Characters that a message shows."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one subcommand; returns its exit code: 0, 1, 2, 3, 130 or 141 (docs/delivery.md)."""
    parser = _Parser(prog="sluice", description="DAPO training of language models as an asynchronous service system.")
    parser.add_argument("--version", action="version", version=f"sluice {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    for name in VERBS:
        importlib.import_module(f"sluice.cli.{name}").add_parser(commands)
    args = parser.parse_args(argv)
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")  # a model's text may have what the terminal has not

    from sluice.errors import SluiceError

    try:
        code = args.run(args)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        if not _reader_has_left():
            raise
        return 141
    except SluiceError as error:
        print(f"sluice: {error}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1
    except OSError as error:  # a full disk, a path that is too long, a folder that may not be read
        if error.strerror is None:
            raise
        place = f": {str(error.filename)[:_MOST_OF_A_PATH]}" if error.filename is not None else ""
        print(f"sluice: {error.strerror}{place}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _reader_has_left() -> bool:
    """Whether nobody reads standard output any more (`sluice groups | head`). What is still to be written then goes nowhere."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    if not any(event & select.POLLERR for _, event in poll.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


class _Parser(argparse.ArgumentParser):
    """Takes flags as they are written: what begins like one, `--n` like `--no-greedy`, is refused. So do its commands."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings, allow_abbrev=False)


if __name__ == "__main__":
    sys.exit(main())
