"""python -m tests.chaos.liar KIND --service-id NAME --coordinator HOST:PORT --model PATH [--boasts]: a liar as a process.

It lives until it is killed, and joins anew when the coordinator has gone meanwhile (sluice/rpc/registration.py).
"""

import argparse
import asyncio
import sys
from collections.abc import Mapping
from pathlib import Path

from tests import liars
from tests.chaos.plan import Lie, LyingMember

HONEST_CAPACITY, BOASTED_CAPACITY = 32, 2**31 - 1

KINDS: Mapping[Lie, type[liars.Liar]] = {
    Lie.ROLLOUT_NONSENSE: liars.LyingRollout,
    Lie.ROLLOUT_REFUSES: liars.RefusingRollout,
    Lie.ROLLOUT_SLOW: liars.SlowRollout,
    Lie.ROLLOUT_TRICKLES: liars.TricklingRollout,
    Lie.ROLLOUT_FLAPS: liars.FlappingRollout,
    Lie.REWARD_NONSENSE: liars.LyingReward,
    Lie.REWARD_REFUSES: liars.RefusingReward,
    Lie.REWARD_SLOW: liars.SlowReward,
    Lie.REWARD_FLAPS: liars.FlappingReward,
}
"""The fake of each lie."""


def command_of(liar: LyingMember, *, coordinator: str, model: Path) -> list[str]:
    """The words that start the process of a liar."""
    boasts = ["--boasts"] * liar.boasts
    where = ["--coordinator", coordinator, "--model", str(model)]
    return [sys.executable, "-m", "tests.chaos.liar", liar.lie.value, "--service-id", liar.service_id, *where, *boasts]


def main() -> None:
    """Lives."""
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", type=Lie)
    for flag in ("--service-id", "--coordinator", "--model"):
        parser.add_argument(flag, required=True)
    parser.add_argument("--boasts", action="store_true")
    args = parser.parse_args()
    capacity = BOASTED_CAPACITY if args.boasts else HONEST_CAPACITY
    liar = KINDS[args.kind](service_id=args.service_id, model=Path(args.model), capacity=capacity)
    asyncio.run(liar.live(args.coordinator))


if __name__ == "__main__":
    main()
