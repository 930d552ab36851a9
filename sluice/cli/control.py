"""Verbs that command a run or show a run: each verb is one use of `sluice.Client`; a refusal goes to stderr unchanged."""

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sluice.cli import queued
from sluice.cli.durations import seconds
from sluice.cli.whereabouts import where
from sluice.rpc.service import add_credentials_flag

DEFAULT_COORDINATOR = "127.0.0.1:18050"

Verb = Callable[[Any, argparse.Namespace], str]


def add_parser(commands: Any) -> None:
    """Adds the verbs."""
    status = add_verb(commands, "status", "where the run stands", _status)
    _add_job_flag(status, queued.run_status)
    events = add_verb(commands, "events", "print every event until the run has ended", _events)
    events.add_argument("--json", action="store_true", help="a JSON object a line")
    stop = add_verb(commands, "stop", "end the run after the current step", _stop)
    stop.add_argument("--reason", default="", help="for the log and the summary")
    _add_job_flag(stop, queued.run_stop)
    add_verb(commands, "pause", "stop admitting groups", lambda client, _: str(client.pause()))
    add_verb(commands, "resume", "admit groups again", lambda client, _: str(client.resume()))
    drain = add_verb(commands, "drain", "stop admitting and wait until no group is in flight", _drain)
    drain.add_argument(
        "--timeout-s", type=seconds, default=900.0, metavar="S", help="give up after (default %(default)s)"
    )
    add_verb(
        commands,
        "checkpoint",
        "save a checkpoint at the next step boundary",
        lambda client, _: client.save_checkpoint().path,
    )
    scale = add_verb(commands, "scale", "have the launcher run this many replicas", _scale)
    scale.add_argument("role", choices=["rollout", "reward"])
    scale.add_argument("replicas", type=int)


def add_verb(commands: Any, name: str, text: str, verb: Verb) -> argparse.ArgumentParser:
    """A subcommand that prints what `verb` returns for a run."""
    parser = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--run-dir",
        dest="of_run",
        type=Path,
        metavar="RUN",
        help="a run that is up, with the credentials that it names",
    )
    add_coordinator_flag(where)
    add_credentials_flag(parser)
    parser.set_defaults(run=lambda args: call(verb, args))
    return parser


def _add_job_flag(parser: argparse.ArgumentParser, of_job: Callable[[argparse.Namespace], int]) -> None:
    """Adds --job, with which `of_job` does the verb's work."""
    parser.add_argument("--job", metavar="JOB", help=queued.JOB_HELP)
    of_run = parser.get_default("run")
    parser.set_defaults(run=lambda args: of_job(args) if args.job is not None else of_run(args))


def add_coordinator_flag(parser: Any) -> None:
    """Adds --coordinator: the address that `call` talks to."""
    parser.add_argument(
        "--coordinator",
        default=os.environ.get("SLUICE_COORDINATOR", DEFAULT_COORDINATOR),
        metavar="HOST:PORT",
        help="its address (default %(default)s; environment SLUICE_COORDINATOR)",
    )


def call(verb: Verb, args: argparse.Namespace) -> int:
    """Prints what the verb returns for the coordinator. Raises the SluiceError of a call that failed."""
    from sluice.client import Client
    from sluice.errors import Unavailable
    from sluice.rpc.access import Role
    from sluice.rpc.credentials import load_credentials

    if getattr(args, "of_run", None) is not None:
        args.coordinator, folder = where(args.of_run)
        args.credentials = folder or args.credentials
    credentials = load_credentials(args.credentials, role=Role.OPERATOR)
    try:
        with Client(args.coordinator, credentials=credentials) as client:
            text = verb(client, args)
    except Unavailable as error:
        raise Unavailable(str(error), fix="is a run up there? --coordinator names another") from error
    if text:
        print(text)
    return 0


def _status(client: Any, args: argparse.Namespace) -> str:
    from rich.console import Console

    from sluice.launch.view import render

    Console().print(render(client.status()))
    return ""


def _events(client: Any, args: argparse.Namespace) -> str:
    from google.protobuf.json_format import MessageToJson

    from sluice.launch.view import event_line
    from sluice.report.figures import printable

    for event in client.watch():
        if args.json:
            line = MessageToJson(event, preserving_proto_field_name=True, indent=None)
        else:
            line = printable(event_line(event).replace("\n", " | "))
        print(line, flush=True)
    return ""


def _stop(client: Any, args: argparse.Namespace) -> str:
    return str(client.stop(reason=args.reason))


def _drain(client: Any, args: argparse.Namespace) -> str:
    return str(client.drain(timeout_s=args.timeout_s))


def _scale(client: Any, args: argparse.Namespace) -> str:
    lines = [f"{args.role}: {client.scale(args.role, args.replicas)} replicas asked for"]
    waits = [wait for wait in client.status().waits if wait.who.startswith(f"{args.role}-")]
    return "\n".join([*lines, *(f"{wait.who} {wait.why}" for wait in waits if "waits for a place" in wait.why)])
