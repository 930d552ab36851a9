"""`sluice groups`: the live and recent groups of a run. `sluice prompts`: prompts of your own, in front of its data."""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from sluice.cli.control import add_verb
from sluice.errors import DataError


def add_parser(commands: Any) -> None:
    """Adds `groups` and `prompts`."""
    groups = add_verb(commands, "groups", "live groups and recent ones, newest first", _groups)
    groups.add_argument("--state", default="", metavar="TERM", help='only this term of the ledger, such as "trained"')
    groups.add_argument("--limit", type=int, default=20, metavar="N", help="at most (default %(default)s)")
    prompts = add_verb(commands, "prompts", "add prompts in front of the data set", _submit)
    prompts.add_argument(
        "file",
        metavar="FILE",
        help='JSON lines with "data_source", "prompt" (text or a chat), "ground_truth", "extra_info", "environment", '
        '"env_args"; - for stdin',
    )


def _groups(client: Any, args: argparse.Namespace) -> str:
    from sluice.report.figures import printable
    from sluice.report.group_page import aligned

    found = client.groups(state=args.state, limit=args.limit)
    rows = [
        [
            group.group_id,
            group.state,
            f"v{group.oldest_version}" if group.oldest_version >= 0 else "",
            f"{group.step}" if group.step >= 0 else "",
            group.prompt_id,
        ]
        for group in found
    ]
    return printable("\n".join(aligned([["group", "state", "oldest", "step", "prompt"], *rows])))


def _submit(client: Any, args: argparse.Namespace) -> str:
    if args.file == "-":
        return "\n".join(client.submit(list(_prompts(sys.stdin, where="stdin"))))
    try:
        with Path(args.file).open(encoding="utf-8-sig") as lines:
            return "\n".join(client.submit(list(_prompts(lines, where=args.file))))
    except OSError as error:
        raise DataError(f"{args.file}: cannot be read: {error.strerror}", fix="name a file of JSON lines") from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{args.file}: must be UTF-8, got the byte 0x{error.object[error.start]:02x}",
            fix="convert the file with iconv -t utf-8",
        ) from error


def _prompts(lines: TextIO, *, where: str) -> Iterator[Any]:
    """The prompts of a JSON Lines text. Raises DataError with the number of the bad line."""
    from sluice.client import Prompt

    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            yield Prompt(**json.loads(line))
        except (ValueError, TypeError, RecursionError) as error:
            raise DataError(
                f"{where}, line {number}: must be a JSON object with data_source and prompt, and at most ground_truth, "
                f"extra_info, environment and env_args: {error}",
                fix="mend the line; nothing was submitted",
            ) from error
