"""`sluice agent`: plays a run's episodes with the environments of another library, and writes their tasks as rows."""

import argparse
import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from sluice.cli.durations import grace
from sluice.errors import ConfigError, LaunchError
from sluice.rpc.service import add_credentials_flag

GATEWAY = "http://127.0.0.1:18080/v1"


def add_parser(commands: Any) -> None:
    """Adds `agent verifiers` and `agent verifiers-rows`."""
    agent = commands.add_parser("agent", help="play a run's episodes with environments of another library")
    kinds = agent.add_subparsers(dest="kind", required=True, metavar="LIBRARY")
    play = kinds.add_parser(
        "verifiers",
        help="play episodes with a taskset of verifiers",
        description="Takes episodes from a run's gateway and plays them with a taskset of verifiers, until the run has ended.",
    )
    _add_taskset_flags(play)
    play.add_argument("--gateway", default=GATEWAY, metavar="URL", help="the run's gateway (default %(default)s)")
    play.add_argument("--parallel", type=int, default=32, metavar="N", help="episodes at once (default %(default)s)")
    play.add_argument(
        "--grace", type=grace, default=60.0, metavar="S", help="seconds for running episodes after SIGTERM"
    )
    play.add_argument(
        "--tokenizer", type=Path, required=True, metavar="DIR", help="the model's folder: model.path of the run"
    )
    play.add_argument("--renderer", default="", metavar="NAME", help="a family of the renderers library")
    add_credentials_flag(play)
    play.set_defaults(run=_play)
    rows = kinds.add_parser(
        "verifiers-rows",
        help="write a taskset of verifiers as rows",
        description="Writes the tasks of a taskset as a JSON Lines file for data.train_files.",
    )
    _add_taskset_flags(rows)
    rows.add_argument("--out", type=Path, required=True, metavar="FILE", help="the file, .jsonl")
    rows.add_argument("--limit", type=int, default=None, metavar="N", help="the first N tasks alone")
    rows.set_defaults(run=_rows)


def _add_taskset_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--taskset", required=True, metavar="NAME", help="an installed taskset, or a file of yours, .py"
    )
    parser.add_argument("--env", default="", metavar="NAME", help="verifiers' environment around it (default: its own)")
    parser.add_argument("--args", default="", metavar="JSON", help="settings of verifiers' [env] block")
    parser.add_argument(
        "--environment", default="", metavar="NAME", help="the recipe's environment, where it has several"
    )


def _play(args: argparse.Namespace) -> int:
    """Returns 0 when the run is over or this process was asked to stop."""
    for flag, least, got in (("--parallel", 1, args.parallel), ("--grace", 0, args.grace)):
        if not least <= got < float("inf"):
            raise ConfigError(f"{flag}: must be at least {least}, got {got}")
    if not (args.tokenizer / "tokenizer_config.json").is_file():
        raise ConfigError(
            f"--tokenizer: must be the folder of the run's model, with its tokenizer, got {args.tokenizer}"
        )
    from sluice.agents.taskset import env_config
    from sluice.telemetry.logs import configure_logs

    configure_logs(service="agent")
    headers = _headers(args.credentials, args.gateway)
    config = env_config(args.taskset, env=args.env, settings=args.args)
    tally = asyncio.run(_work(args, config, headers))
    print(f"{tally.finished} episodes finished, {tally.failed} failed", file=sys.stderr)
    return 0


def _headers(folder: str, gateway: str) -> dict[str, str]:
    """What shows the run's credentials. Raises ConfigError."""
    from urllib.parse import urlsplit

    from sluice.rpc.access import Role
    from sluice.rpc.credentials import load_credentials

    where = urlsplit(gateway)
    if where.scheme not in ("http", "https") or not where.hostname or not where.path.rstrip("/").endswith("/v1"):
        raise ConfigError(f"--gateway: must be a URL like {GATEWAY}, which `sluice up` says, got {gateway!r}")
    credentials = load_credentials(folder, role=Role.ENVIRONMENT if folder else None)
    if credentials.channel_tls() is not None:
        raise ConfigError(f"--credentials {folder}: the clients of verifiers show no certificate; use `sluice tokens`")
    return dict(credentials.metadata(where.netloc, Role.COORDINATOR))


async def _work(args: argparse.Namespace, config: Any, headers: dict[str, str]) -> Any:
    from sluice.agents.gateway import Gateway
    from sluice.agents.verifiers_runner import VerifiersRunner
    from sluice.agents.worker import Worker
    from sluice.rpc.server import stop_on_signals

    gateway = Gateway(args.gateway, headers=headers)
    runner = VerifiersRunner(config, url=gateway.url, tokenizer=str(args.tokenizer), renderer=args.renderer)
    worker = Worker(gateway, runner, environment=args.environment, parallel=args.parallel, grace_s=args.grace)
    stop_on_signals(worker.stop)
    try:
        async with runner.serving():
            return await worker.work()
    finally:
        await gateway.aclose()


def _rows(args: argparse.Namespace) -> int:
    if args.limit is not None and args.limit < 1:
        raise ConfigError(f"--limit: must be at least 1, got {args.limit}")
    from sluice.agents.taskset import env_config, library, rows

    config = env_config(args.taskset, env=args.env, settings=args.args)
    taskset = library().load_taskset(config.taskset)
    count = 0
    try:
        with args.out.open("w", encoding="utf-8") as file:
            for row in rows(taskset, environment=args.environment, limit=args.limit):
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                count += 1
    except OSError as error:
        raise LaunchError(f"--out {args.out}: cannot be written: {error.strerror or error}") from error
    print(f"{count} rows in {args.out}", file=sys.stderr)
    return 0
