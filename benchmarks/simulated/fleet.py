"""python -m benchmarks.simulated.fleet: a process with many simulated rollouts, each on a port of its own, and a reward.

Waits: for the coordinator to answer registrations and heartbeats (sluice.rpc.registration bounds it); for SIGTERM.
"""

import argparse
import asyncio
import functools
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import uvloop

from benchmarks.simulated.model import TOKENS, VOCABULARY
from sluice.rpc.arrays import pack_floats, pack_ids, unpack_ids
from sluice.rpc.server import stop_on_signals
from sluice.telemetry.logs import configure_logs
from sluice.testing.fakes import FakeReward, FakeRollout, FakeService, Lengths, TimedEngine
from sluice.testing.fakes.rollout import END_TOKEN
from sluice.v1 import rollout_pb2


class Canned:
    """Tokens to cut completions from, so that making one costs next to nothing. They compress about as real ones do: ids
    spread log-uniformly over a vocabulary of 150,000, log-probabilities with random mantissas."""

    def __init__(self, longest: int) -> None:
        self._starts = 1 << 23 if longest > 1000 else 1 << 16  # far enough apart that no compressor finds two alike
        random = np.random.default_rng(0)
        many = self._starts + longest
        self._ids = pack_ids((VOCABULARY ** random.random(many, np.float32)).astype(np.int32))
        self._logprobs = pack_floats(-random.standard_exponential(many, np.float32) * np.float32(0.3))

    def cut(self, seed: int, tokens: int) -> tuple[bytes, bytes]:
        """int32[tokens] ids with the end token, float32[tokens] log-probabilities."""
        first = 4 * (seed % self._starts)
        last = first + 4 * tokens
        return self._ids[first : last - 4] + pack_ids([END_TOKEN]), self._logprobs[first:last]


class SimulatedRollout(FakeRollout):
    """The share of right answers is a property of the prompt."""

    def __init__(self, *, signal: float, canned: Canned, **standing: Any) -> None:
        super().__init__(**standing)
        self._canned = canned
        self._rights = functools.lru_cache(maxsize=4096)(functools.partial(_rights, signal))

    def write(
        self, request: rollout_pb2.GenerateRequest, spec: rollout_pb2.SampleSpec, tokens: int
    ) -> tuple[bytes, bytes, str]:
        right, rightly = self._rights(request.prompt_token_ids, len(request.samples))
        return *self._canned.cut(spec.seed, tokens), right if rightly > spec.index else "#0"


def _rights(signal: float, prompt_token_ids: bytes, samples: int) -> tuple[str, int]:
    """The right answer, and how many of the first samples have it: one, none, or all."""
    text = "".join(TOKENS[token] for token in unpack_ids(prompt_token_ids))
    right = f"#{sum(int(part) for part in text.rstrip('=').split('+'))}"
    place = zlib.crc32(prompt_token_ids) / (1 << 32)
    if place < signal:
        return right, 1
    return right, samples if place < (1.0 + signal) / 2 else 0


async def _serve(args: argparse.Namespace) -> None:
    stop = asyncio.Event()
    stop_on_signals(stop)
    lengths = Lengths(median=args.median_tokens, sigma=args.sigma, most=args.most_tokens)
    canned = Canned(args.most_tokens if args.sigma else args.median_tokens)
    services: list[FakeService] = [FakeReward(model=args.model, capacity=1 << 20)] if args.reward else []
    for index in range(args.first, args.first + args.rollouts):
        engine = TimedEngine(lengths=lengths, token_s=args.token_s, slots=args.slots)
        rollout = SimulatedRollout(
            signal=args.signal,
            canned=canned,
            service_id=f"rollout-{index}",
            engine=engine,
            model=args.model,
            capacity=args.slots,
            max_model_len=1 << 20,
        )
        services.append(rollout)
    for service in services:
        await service.join(args.coordinator)
    await stop.wait()
    await asyncio.gather(*(service.stop() for service in services))


def main() -> None:
    """Serves until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--coordinator", required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--rollouts", type=int, required=True)
    parser.add_argument("--first", type=int, default=0, help="number of the first rollout")
    parser.add_argument("--reward", action="store_true", help="also a simulated reward")
    parser.add_argument("--median-tokens", type=int, required=True)
    parser.add_argument("--sigma", type=float, default=0.0)
    parser.add_argument("--most-tokens", type=int, default=1 << 20)
    parser.add_argument("--token-s", type=float, default=0.0, help="0: no time at all")
    parser.add_argument("--slots", type=int, default=64)
    parser.add_argument("--signal", type=float, default=1.0, help="share of prompts whose answers differ")
    args = parser.parse_args()
    configure_logs(service="simulated", level="warning")
    uvloop.run(_serve(args))


if __name__ == "__main__":
    main()
