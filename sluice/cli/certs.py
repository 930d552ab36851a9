"""`sluice certs` and `sluice tokens`: make the credentials that processes of a run on several machines show each other."""

import argparse
from pathlib import Path
from typing import Any

from sluice.cli.durations import days
from sluice.errors import LaunchError


def add_parser(commands: Any) -> None:
    """Adds `certs` and `tokens`."""
    certs = commands.add_parser(
        "certs",
        help="make development certificates, one a role, for mutual TLS",
        description="Writes DIR/ROLE/{cert,key,ca}.pem for every role. Run again it renews them under the same authority.",
    )
    _add_folder(certs)
    certs.add_argument("--days", type=days, default=30.0, help="how long they are valid (default %(default)g)")
    certs.add_argument(
        "--host",
        dest="hosts",
        action="append",
        default=[],
        metavar="NAME",
        help="a further name or address in them, for clients other than Sluice's, which go by the role",
    )
    certs.set_defaults(run=_certs)
    tokens = commands.add_parser(
        "tokens",
        help="make tokens, one folder a role, for a machine or a private network",
        description="Writes DIR/ROLE/tokens.json for every role. Tokens are readable on the wire: prefer `sluice certs`.",
    )
    _add_folder(tokens)
    tokens.add_argument(
        "--private-network",
        action="store_true",
        help="let them leave a machine: nobody but the run's own processes can listen between its machines",
    )
    tokens.set_defaults(run=_tokens)


def _add_folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="DIR", help="for network.credentials; keep it out of repositories")


def _certs(args: argparse.Namespace) -> int:
    import datetime

    try:
        from sluice.rpc.certificate_authority import make_certificates
    except ModuleNotFoundError as error:
        raise LaunchError(
            f"sluice certs needs the package `cryptography` ({error}); install it with `pip install 'sluice-rl[certs]'`"
        ) from error
    make_certificates(args.folder, valid_for=datetime.timedelta(days=args.days), hosts=args.hosts)
    print(f"valid for {args.days:g} days; {_next(args.folder)}")
    return 0


def _tokens(args: argparse.Namespace) -> int:
    from sluice.rpc.tokens import make_tokens

    make_tokens(args.folder, private_network=args.private_network)
    print(_next(args.folder))
    return 0


def _next(folder: Path) -> str:
    return (
        f"run with `--set network.credentials={folder}`; give another machine only the folder of the role it runs, in "
        f"SLUICE_CREDENTIALS; people call with SLUICE_CREDENTIALS={folder / 'operator'}"
    )
