"""`sluice learner-node`: a further machine of a learner that trains on several."""

import argparse
import sys
from typing import Any


def add_parser(commands: Any) -> None:
    """Adds `learner-node`."""
    node = commands.add_parser(
        "learner-node",
        help="train on this machine for a learner that has several",
        description="Runs this machine's ranks of a learner until the run has ended; `sluice up` with "
        "--learner-nnodes prints the line to type.",
    )
    node.add_argument("--rdzv-endpoint", required=True, metavar="HOST:PORT", help="where the machines meet")
    node.add_argument("--rdzv-id", required=True, metavar="RUN", help="name of the run directory")
    node.add_argument("--nnodes", type=int, required=True, metavar="N", help="machines of the learner")
    node.add_argument("--node-rank", type=int, required=True, metavar="K", help="which one this is: 1 to N - 1")
    node.add_argument(
        "--nproc-per-node", type=int, default=1, metavar="N", help="ranks on this machine (default %(default)s)"
    )
    node.add_argument(
        "--timeout-s",
        type=float,
        default=300.0,
        metavar="S",
        help="limit of a wait for the others (default %(default)s)",
    )
    node.set_defaults(run=run_learner_node)


def run_learner_node(args: argparse.Namespace) -> int:
    """Stays in the run until it has ended."""
    import asyncio

    from sluice.config.schema import LaunchConfig
    from sluice.errors import ConfigError
    from sluice.launch.learner_node import stay

    if not 1 <= args.node_rank < args.nnodes:
        raise ConfigError(
            f"--node-rank: must be 1 to {args.nnodes - 1} with --nnodes {args.nnodes}, got {args.node_rank}; "
            "node 0 is the machine of `sluice up`"
        )
    arguments = ["--rdzv-endpoint", args.rdzv_endpoint, "--rdzv-id", args.rdzv_id, "--nnodes", str(args.nnodes)]
    arguments += ["--node-rank", str(args.node_rank), "--nproc-per-node", str(args.nproc_per_node)]
    arguments += ["--timeout-s", f"{args.timeout_s:g}"]
    return asyncio.run(
        stay(arguments, grace_s=LaunchConfig().grace_s, say=lambda text: print(f"sluice: {text}", file=sys.stderr))
    )
