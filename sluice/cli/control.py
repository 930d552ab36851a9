"""Thin verbs over the coordinator's API: status, stop, pause, resume, drain, scale, checkpoint, evaluate."""

import argparse
import os
import sys
from collections.abc import Callable
from typing import Any

from sluice.rpc.service import add_credentials_flag

DEFAULT_COORDINATOR = "127.0.0.1:50050"

Verb = Callable[[Any, argparse.Namespace], str]


def add_parser(commands: Any) -> None:
    """Adds the verbs."""
    for name, text, verb in (
        ("status", "where the run stands", _status),
        ("stop", "end the run after the current step", lambda client, _: _state(client.stop())),
        ("pause", "stop admitting groups", lambda client, _: _state(client.pause())),
        ("resume", "admit groups again", lambda client, _: _state(client.resume())),
        ("drain", "stop admitting and wait until no group is in flight", lambda client, _: _state(client.drain())),
        ("checkpoint", "save a checkpoint at the next step boundary", lambda client, _: client.save_checkpoint().path),
        ("evaluate", "evaluate the newest version on held-out prompts", lambda client, _: str(client.evaluate())),
    ):
        _add(commands, name, text, verb)
    scale = _add(commands, "scale", "have the launcher run this many replicas", _scale)
    scale.add_argument("role", choices=["rollout", "reward"])
    scale.add_argument("replicas", type=int)


def _add(commands: Any, name: str, text: str, verb: Verb) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    add_coordinator_flag(parser)
    add_credentials_flag(parser)
    parser.set_defaults(run=lambda args: call(verb, args))
    return parser


def add_coordinator_flag(parser: Any) -> None:
    """Whom `call` talks to."""
    parser.add_argument(
        "--coordinator",
        default=os.environ.get("SLUICE_COORDINATOR", DEFAULT_COORDINATOR),
        metavar="HOST:PORT",
        help="its address (default %(default)s; environment SLUICE_COORDINATOR)",
    )


def call(verb: Verb, args: argparse.Namespace) -> int:
    """Prints what the verb makes of the coordinator's answers; a call that failed is one line on stderr and exit code 1."""
    import grpc

    from sluice.client import Client
    from sluice.rpc.access import Role
    from sluice.rpc.credentials import load_credentials

    try:
        credentials = load_credentials(args.credentials, role=Role.OPERATOR)
        with Client(args.coordinator, credentials=credentials) as client:
            text = verb(client, args)
    except grpc.RpcError as error:
        status: Any = error
        hint = "; is a run up there? --coordinator names another" if status.code().name == "UNAVAILABLE" else ""
        print(f"sluice: {args.coordinator}: {status.details()}{hint}", file=sys.stderr)
        return 1
    if text:
        print(text)
    return 0


def _status(client: Any, args: argparse.Namespace) -> str:
    from rich.console import Console

    from sluice.cli.view import render

    Console().print(render(client.status()))
    return ""


def _scale(client: Any, args: argparse.Namespace) -> str:
    made = client.scale(args.role, args.replicas)
    return f"{args.role}: {made.replicas} replicas wished for"


def _state(response: Any) -> str:
    from sluice.v1 import coordinator_pb2 as pb

    return pb.RunState.Name(response.state).removeprefix("RUN_STATE_").lower()
