"""`sluice status` and `sluice stop` with --job: a submitted run, asked where it can be reached, else its queue."""

import argparse
import os
from pathlib import Path
from typing import Any

from sluice.cli.submissions import Submitted, find

JOB_HELP = "a submitted run: QUEUE/ID as `sluice submit` printed it, or its name"


def run_status(args: argparse.Namespace) -> int:
    """Prints the run's own status; where its coordinator does not answer, what the queue says."""
    from rich.console import Console

    from sluice.launch.view import render

    submitted = find(args.job)
    client, why = _reached(submitted, args)
    if client is not None:
        with client:
            Console().print(render(client.status()))
        return 0
    state = _submitter(submitted).state(submitted.job)
    where = f"; run directory {submitted.run_dir}" if submitted.run_dir else ""
    print(f"{submitted.label} is {state} by its queue{where}; the run itself was not asked: {why}")
    return 0


def run_stop(args: argparse.Namespace) -> int:
    """Ends the run after the current step; where its coordinator does not answer, has the queue end its job in order."""
    submitted = find(args.job)
    client, why = _reached(submitted, args)
    if client is not None:
        with client:
            print(client.stop(reason=args.reason))
        return 0
    _submitter(submitted).stop(submitted.job)
    print(f"{submitted.label}: its queue was told to end it; the run itself was not asked: {why}")
    return 0


def _submitter(submitted: Submitted) -> Any:
    from sluice.launch.submit.choice import submitter_of

    return submitter_of(submitted.on)


def _reached(submitted: Submitted, args: argparse.Namespace) -> tuple[Any, str]:
    """A client of the run's coordinator, or None and why there is none."""
    from sluice.client import Client
    from sluice.errors import SluiceError
    from sluice.launch.own_network import CREDENTIALS
    from sluice.rpc.access import Role
    from sluice.rpc.credentials import load_credentials

    address, why = _address(submitted, args)
    if not address:
        return None, why
    made = Path(submitted.run_dir) / CREDENTIALS / Role.OPERATOR  # by a run that had none
    own = next((str(at) for at in (Path(submitted.credentials or "-"), made) if submitted.run_dir and at.is_dir()), "")
    client = None
    try:
        client = Client(address, credentials=load_credentials(args.credentials or own, role=Role.OPERATOR))
        there = client.status().run_dir
        if Path(there) == Path(submitted.run_dir or there):
            return client, ""
        why = f"{address} conducts the run in {there}"
    except SluiceError as error:
        why = str(error)
    if client is not None:
        client.close()
    return None, why


def _address(submitted: Submitted, args: argparse.Namespace) -> tuple[str, str]:
    """--coordinator, else the address that `sluice up` has left in the run directory; empty with the reason."""
    from sluice.cli.control import DEFAULT_COORDINATOR
    from sluice.run_dir.naming import ADDRESS_FILE

    # A variable of this shell may be about another run than the job, and a job from elsewhere has no directory to compare.
    if args.coordinator not in (DEFAULT_COORDINATOR, os.environ.get("SLUICE_COORDINATOR")):
        return args.coordinator, ""
    if not submitted.run_dir:
        return "", "it was not handed in from this machine; --coordinator HOST:PORT names it"
    try:
        return (Path(submitted.run_dir) / ADDRESS_FILE).read_text(encoding="utf-8").strip(), ""
    except (OSError, UnicodeDecodeError):
        return "", "its address is not known on this machine; --coordinator HOST:PORT names it"
