"""The learner's ranks of one machine: a rank alone takes the place of this process, several are its children.

Where the learner has further machines, torchrun starts the ranks; otherwise this process does (local_ranks.py).

`python -m services.learner.distributed.node ... -- FLAGS OF services.learner`

Several machines meet by torchrun's static rendezvous, because machine 0, which has rank 0, has to be a certain one; the c10d
rendezvous would number machines by sorted host names. Where machine 0 holds the store is given in --rdzv-endpoint, where
somebody has typed the commands: then machine 0 is where `sluice up` runs. With --round instead an engine has placed the
machines, and they find each other through the coordinator (meeting.py). A static rendezvous serves one round: when one rank
is lost all ranks end, and the machines meet again because the launcher, or `sluice learner-node`, starts this program anew.

 who waits        for what                              unblocked by
 machine 0        the other machines                    the last machine's joining, or --timeout-s
 another machine  machine 0's store, then the others    the last machine's joining, or --timeout-s
"""

import argparse
import os
import signal
import sys
from typing import TYPE_CHECKING

from services.learner.distributed.interface import interface_towards
from services.learner.distributed.local_ranks import run_ranks
from services.learner.distributed.rank_environment import prepare_allocator
from sluice.addresses import loopback_interface
from sluice.errors import Expired, SluiceError
from sluice.interfaces import NCCL_INTERFACE
from sluice.process import exit_codes
from sluice.process.child import armed, module_command
from sluice.rpc.service import LEARNER_PORT, ServiceOptions, exit_code, options_from, service_parser
from sluice.rpc.service_parser import ServiceParser
from sluice.telemetry.logs import configure_logs

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    from services.learner.distributed.meeting import Meeting

GLOO_INTERFACE = "GLOO_SOCKET_IFNAME"


def main(argv: list[str] | None = None) -> int:
    """Runs this machine's ranks; returns 0, 1, BAD_USAGE, NOT_JOINED, PEER_LOST, or 128 + the signal that ended it."""
    args = _parser().parse_args(argv)
    if not args.round:  # before torch is imported, because a meeting point may be wrong
        try:
            _choose_interface(args)
        except SluiceError as error:
            return exit_code(error)
    prepare_allocator()
    if args.nnodes == args.nproc_per_node == 1:  # torchrun would cost seconds of imports and watch over nobody's peer
        os.environ.pop("RANK", None)
        os.execv(sys.executable, _rank(args))
    if args.nnodes == 1:
        configure_logs(service="learner")
        return run_ranks(_rank(args), count=args.nproc_per_node)
    return _one_round(args)


def _one_round(args: argparse.Namespace) -> int:
    """Meets the other machines and runs the ranks under torchrun."""
    from torch.distributed import DistNetworkError, DistStoreError
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    configure_logs(service="learner")
    meeting = None  # to be kept: machine 0's serves the store
    try:
        if args.round:
            meeting = _meet(args)
            args.rdzv_endpoint, args.rdzv_id = meeting.endpoint, args.round
            _choose_interface(args)
        run(parse_args(_torchrun_arguments(args)))
    except Expired as error:
        exit_code(error)
        return exit_codes.NOT_JOINED
    except SluiceError as error:
        return exit_code(error)
    except (DistNetworkError, DistStoreError) as error:
        exit_code(Expired(_not_joined(args, str(error).splitlines()[0])))
        return exit_codes.NOT_JOINED
    except ChildFailedError as error:
        return _code_of(error, placed=bool(args.round))
    except SignalException as error:
        return 128 + error.sigval
    return 0


def _choose_interface(args: argparse.Namespace) -> None:
    """Has gloo take the interface that leads to the other machines. Raises ConfigError when there is none."""
    if GLOO_INTERFACE not in os.environ:
        here = args.nnodes == 1
        os.environ[GLOO_INTERFACE] = name = loopback_interface() if here else interface_towards(args.rdzv_endpoint)
        if not here:
            os.environ.setdefault(NCCL_INTERFACE, f"={name}")


def _meet(args: argparse.Namespace) -> "Meeting":
    """Meets the other machines of the round, with the address and the credentials that the ranks' flags give."""
    from services.learner.distributed.board import coordinators_board
    from services.learner.distributed.meeting import Place, meet

    flags, _ = service_parser("learner", "", port=LEARNER_PORT).parse_known_args(args.arguments)
    options = options_from(ServiceOptions, flags)
    place = Place(round_name=args.round, number=args.node_rank, machines=args.nnodes, timeout_s=args.timeout_s)
    with coordinators_board(options, args.round) as board:
        return meet(place, board, host=options.advertise)


def _code_of(error: "ChildFailedError", *, placed: bool) -> int:
    """The exit code for failed ranks: the launcher of `placed` machines asks whether the cause lies elsewhere."""
    if error.get_first_failure()[1].exitcode == exit_codes.BAD_USAGE:
        return exit_codes.BAD_USAGE
    elsewhere = placed and {failure.exitcode for failure in error.failures.values()} == {exit_codes.PEER_LOST}
    return exit_codes.PEER_LOST if elsewhere else 1


def _parser() -> argparse.ArgumentParser:
    parser = ServiceParser(
        prog="python -m services.learner.distributed.node", description="The learner on one machine."
    )
    parser.add_argument("--nnodes", type=int, default=1, help="machines of the learner (default: %(default)s)")
    parser.add_argument("--node-rank", type=int, default=0, help="0: the machine with rank 0 (default: %(default)s)")
    parser.add_argument("--nproc-per-node", type=int, default=1, help="ranks on this machine (default: %(default)s)")
    parser.add_argument("--rdzv-endpoint", metavar="HOST:PORT", help="where node 0 holds the store")
    parser.add_argument(
        "--round",
        default="",
        metavar="NAME",
        help="instead: name of this start of all machines, which meet by themselves",
    )
    parser.add_argument("--rdzv-id", default="none", help="name of the run, the same on every machine")
    parser.add_argument("--timeout-s", type=float, default=300.0, help="limit of the wait for all machines")
    parser.add_argument("--module", default="services.learner", help="what each rank runs (default: %(default)s)")
    parser.add_argument("arguments", nargs="*", help="after --: flags of the module")
    return parser


def _torchrun_arguments(args: argparse.Namespace) -> list[str]:
    meet = ["--rdzv-backend", "static", "--rdzv-endpoint", args.rdzv_endpoint, "--rdzv-id", args.rdzv_id]
    meet += ["--node-rank", str(args.node_rank), "--rdzv-conf", f"timeout={max(1, round(args.timeout_s))}"]
    # A rank that outlived a killed torchrun would go on in the old round while a new rank takes its place. Each rank is in
    # a session of its own, and a frozen rank would not hear SIGTERM.
    sizes = ["--nnodes", str(args.nnodes), "--nproc-per-node", str(args.nproc_per_node)]
    return [*meet, *sizes, "--no-python", *armed(signal.SIGKILL), *_rank(args)]


def _rank(args: argparse.Namespace) -> list[str]:
    return [*module_command(args.module, "-u"), *args.arguments]


def _not_joined(args: argparse.Namespace, cause: str) -> str:
    if args.round:
        return f"machine {args.node_rank} of the learner lost the others while they met ({cause})"
    if args.node_rank == 0:
        wait = f"at {args.rdzv_endpoint} for the other {args.nnodes - 1} of its {args.nnodes} machines"
    else:
        wait = f"for node 0 at {args.rdzv_endpoint} and all other machines"
    return (
        f"node {args.node_rank} waited up to {args.timeout_s:g} s {wait}; `sluice up` prints what to type on each, "
        f"launch.ready_timeout_s is the limit ({cause})"
    )


if __name__ == "__main__":
    signal.signal(
        signal.SIGINT, signal.SIG_DFL
    )  # Python's handler would never run while this process waits inside torch
    sys.exit(main())
