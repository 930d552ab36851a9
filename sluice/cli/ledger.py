"""`sluice ledger`: the conservation law of a run. `sluice explain`: the life of one group. Each command asks a live run
or the run's files.
"""

import argparse
import importlib.util
import json
from pathlib import Path
from typing import Any

from sluice.cli.control import add_coordinator_flag, call
from sluice.errors import ConfigError, LaunchError, NotFound
from sluice.rpc.service import add_credentials_flag


def add_parser(commands: Any) -> None:
    """Adds `ledger` and `explain`."""
    ledger = commands.add_parser(
        "ledger",
        help="every group and token accounted for, term by term",
        description="Prints the ledger of a running run, or of a run directory, which SQL can be asked of.",
    )
    ledger.add_argument(
        "--sql",
        help="one SQL statement over the tables groups, attempts and samples (with --run-dir; docs/ledger.md)",
    )
    explain = commands.add_parser(
        "explain",
        help="the life of one group",
        description="Tells where a group's prompt came from, who generated it, how it was scored and what became of it.",
    )
    explain.add_argument("group", metavar="GROUP", help="its id, or its number in the order of admission")
    explain.add_argument("--text", action="store_true", help="the prompt and the completions too")
    for parser, verb in ((ledger, _ledger), (explain, _explain)):
        where = parser.add_mutually_exclusive_group()
        where.add_argument(
            "--run-dir", type=Path, metavar="RUN", help="read this run directory instead of asking a run"
        )
        add_coordinator_flag(where)
        add_credentials_flag(parser)
        parser.set_defaults(run=verb)


def _ledger(args: argparse.Namespace) -> int:
    if args.run_dir is None:
        if args.sql is not None:
            raise ConfigError("--sql: must come with --run-dir: the tables are the run's files")
        return call(lambda client, _: _live_ledger(client), args)
    _needs_pyarrow()
    from sluice.report.ledger_page import account_of_files, ledger_page

    print(ledger_page(account_of_files(args.run_dir)) if args.sql is None else _selected(args.run_dir, args.sql))
    return 0


def _live_ledger(client: Any) -> str:
    from sluice.report.ledger_page import ledger_page, live_account

    return ledger_page(live_account(client.ledger()))


def _selected(run_dir: Path, sql: str) -> str:
    from sluice.report.figures import printable
    from sluice.report.group_page import aligned
    from sluice.report.ledger_tables import select

    names, rows = select(run_dir, sql)
    cells = [["" if value is None else str(value).replace("\n", "\\n") for value in row] for row in rows]
    return printable("\n".join(aligned([names, *cells]))) if names else ""


def _explain(args: argparse.Namespace) -> int:
    if args.run_dir is None:
        return call(lambda client, _: _live_page(client, args), args)
    _needs_pyarrow()
    print(_page_of_files(args.run_dir, args.group, with_text=args.text))
    return 0


def _live_page(client: Any, args: argparse.Namespace) -> str:
    from sluice.config.load import parse_config
    from sluice.report.group_page import group_page
    from sluice.report.group_texts import texts_of

    found = client.group(args.group)
    texts = None
    if args.text:
        texts = texts_of(found.group) if found.HasField("group") else "not kept: only accepted groups keep their texts"
    config = parse_config(client.config(), where=f"the configuration of {args.coordinator}")
    return group_page(json.loads(found.row_json), config=config, texts=texts)


def _page_of_files(run_dir: Path, wanted: str, *, with_text: bool) -> str:
    from sluice.config.load import parse_config
    from sluice.report.group_page import group_page
    from sluice.report.group_texts import texts_on_disk
    from sluice.report.ledger_tables import find_row, ledger_files, nearest_ids

    ledger_files(run_dir)
    row = find_row(run_dir, wanted)
    if row is None:
        raise NotFound(
            f"group {wanted!r}: must be one that has ended, {run_dir}/ledger has no row of it; the nearest are "
            f"{', '.join(nearest_ids(run_dir, wanted))}. While the run is up, --coordinator finds the others"
        )
    path = run_dir / "config.yaml"
    try:
        config = parse_config(path.read_text(encoding="utf-8"), where=str(path))
    except OSError as error:
        raise NotFound(f"{path}: cannot be read, without it nothing says how the run was set: {error}") from error
    texts = texts_on_disk(run_dir, group_id=row["group_id"], step=row["step"]) if with_text else None
    return group_page(row, config=config, texts=texts)


def _needs_pyarrow() -> None:
    if importlib.util.find_spec("pyarrow") is None:
        raise LaunchError("--run-dir: needs pyarrow, with which the ledger is written; install sluice-rl[coordinator]")
