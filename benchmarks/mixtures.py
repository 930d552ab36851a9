"""Mixtures of experts: does vLLM agree with the learner, and how often does a router send a token elsewhere in bfloat16?

Random models of four families, real vLLM in this process. In float32 the largest difference of a log-probability is taken
before a push and after a push of changed weights. In bfloat16 both sides round differently, and where two experts are nearly
level a router then chooses another one: the share of (token, layer) pairs whose set of experts differs, the mismatch k3 over
the samples, and the same with the engine's experts forced on the learner, whose own router still weighs them (router
replay). What the engine's routers chose is read by a hook, one sample at a time: vLLM 0.32 returns routed experts
(`enable_return_routed_experts`) only with its second model runner, which needs Triton and so no CPU has.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.report import Row
from services.rollout.adapters.engine_environment import set_environment
from sluice.dapo.mismatch import mismatch

WIDE = {
    "hidden_size": 128,
    "num_experts_per_tok": 4,
    "num_experts": 32,
    "num_local_experts": 32,
    "n_routed_experts": 32,
}
LAYERS, SAMPLES, TOKENS = 6, 24, 64
TOLERANCE_NATS = 1e-4


def run() -> list[Row]:
    """Every family, float32 and bfloat16."""
    set_environment(threads=1)
    from tests.mixture_models import FAMILIES

    torch.set_num_threads(1)
    return [row for family in FAMILIES for row in (*_agreement(family), *_flips(family))]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Compared:
    """Samples of the engine, and what the learner says about them."""

    engine: np.ndarray
    """float32[M] nats."""
    own: np.ndarray
    """float32[M] nats, by the learner's own choice of experts."""
    replayed: np.ndarray
    """float32[M] nats, by the engine's choice."""
    others: float
    """Share of (token, layer) pairs with another set of experts."""

    @property
    def difference(self) -> float:
        """The largest, in nats."""
        return float(np.abs(self.engine - self.own).max())

    @property
    def replayed_difference(self) -> float:
        """The same with the engine's experts."""
        return float(np.abs(self.engine - self.replayed).max())


def _agreement(family: str) -> list[Row]:
    with _pair(family, dtype="float32") as pair:
        before = _compare(pair, samples=SAMPLES // 2)
        pair.train_a_little()
        stale = pair.sample(seed=99, samples=1).difference
        pair.push(pair.publish())
        after = _compare(pair, samples=SAMPLES // 2)
    return [
        *_exact(f"{family}, float32: before a push", before),
        Row(what=f"{family}, float32: the learner changed, not pushed", value=stale, unit="nats", target="", met=True),
        *_exact(f"{family}, float32: after the push", after),
    ]


def _exact(what: str, found: _Compared) -> list[Row]:
    """Where a router of float32 chose another expert, agreement is asked of the same experts."""
    target, same = f"<= {TOLERANCE_NATS:g}", found.others == 0
    met = found.difference <= TOLERANCE_NATS
    rows = [Row(what=what, value=found.difference, unit="nats", target=target * same, met=met or not same)]
    if not same:
        difference = found.replayed_difference
        met = difference <= TOLERANCE_NATS
        rows += [
            Row(what=f"{what}: other experts", value=found.others, unit="of (token, layer)", target="", met=True),
            Row(what=f"{what}: with the engine's experts", value=difference, unit="nats", target=target, met=met),
        ]
    return rows


def _flips(family: str) -> list[Row]:
    with _pair(family, dtype="bfloat16") as pair:
        pair.push(pair.publish())
        found = _compare(pair, samples=SAMPLES)
    own, replayed = (1e3 * _k3(found.engine, learner) for learner in (found.own, found.replayed))
    what = f"{family}, bfloat16, {LAYERS} layers, 4 of 32 experts"
    return [
        Row(what=f"{what}: other experts", value=found.others, unit="of (token, layer)", target="", met=True),
        Row(what=f"{what}: k3", value=own, unit="1e-3 nats", target="", met=True),
        Row(what=f"{what}: k3 with the engine's experts", value=replayed, unit="1e-3 nats", target="", met=True),
    ]


def _compare(pair: Any, *, samples: int) -> _Compared:
    core = pair.engine._core
    core.collective_rpc(_listen)
    sampled = [pair.sample(seed=seed, samples=1, prompts=1) for seed in range(samples)]
    [heard] = core.collective_rpc(_heard)
    chosen_there = [torch.cat(heard[layer]).long() for layer in sorted(heard)]
    routers = [module for module in pair.policy.modules() if type(module).__name__.endswith("Router")]
    replayed, start, others, pairs = [], 0, 0, 0
    for each in sampled:
        end = start + len(each.sequences[0].token_ids) - 1
        wanted = [ids[start:end] for ids in chosen_there]
        start = end
        with _routed(routers, None) as chosen:
            pair.logprobs(each.sequences)
        with _routed(routers, wanted):
            replayed.append(pair.logprobs(each.sequences))
        others += sum(int((a.sort(-1)[0] != b.sort(-1)[0]).any(-1).sum()) for a, b in zip(chosen, wanted, strict=True))
        pairs += sum(map(len, wanted))
    assert all(len(ids) == start for ids in chosen_there), "other tokens than those of the samples"
    return _Compared(
        engine=np.concatenate([each.engine for each in sampled]),
        own=np.concatenate([each.learner for each in sampled]),
        replayed=np.concatenate(replayed),
        others=others / pairs,
    )


def _k3(rollout: np.ndarray, learner: np.ndarray) -> float:
    found = mismatch(rollout_logprobs=rollout, learner_logprobs=learner, ages=np.zeros(len(rollout), np.int32))
    return found["mismatch/k3_nats"]


@contextmanager
def _pair(family: str, *, dtype: str) -> Iterator[Any]:
    from tests.learner_and_engine import Pair
    from tests.mixture_models import write_mixture

    with tempfile.TemporaryDirectory() as folder:
        path = write_mixture(Path(folder) / "model", family, layers=LAYERS, **_wide(family))
        pair = Pair(path, kind="vllm", dtype=dtype, tokens=TOKENS)
        try:
            yield pair
        finally:
            pair.close()


def _wide(family: str) -> dict[str, Any]:
    from transformers import AutoConfig

    known = vars(AutoConfig.for_model(family))
    return {name: value for name, value in WIDE.items() if name in known}


def _listen(worker: Any) -> None:
    """In vLLM's worker: keeps what every router chooses, a list a layer."""
    from vllm.model_executor.layers.fused_moe.layer import MoERunner

    worker.heard = {}
    for module in worker.model_runner.model.modules():
        if isinstance(module, MoERunner):
            worker.heard[module.layer_id] = []
            module.router.set_capture_fn(partial(_keep, worker.heard[module.layer_id]))


def _keep(into: list[Tensor], chosen: Tensor) -> None:
    into.append(chosen.clone())


def _heard(worker: Any) -> dict[int, list[Tensor]]:
    return worker.heard


@contextmanager
def _routed(routers: list[nn.Module], wanted: list[Tensor] | None) -> Iterator[list[Tensor]]:
    """The learner's routers choose what is `wanted`, one tensor a router; without it what they choose is listed."""
    chosen: list[Tensor] = []

    def choose(index: int, router: Any, _: Any, output: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        logits, weights, ids = output
        chosen.append(ids)
        own = _weights(router, logits, ids)
        assert torch.allclose(own.to(weights.dtype).sort(-1)[0], weights.sort(-1)[0], rtol=2e-2), (
            "another arithmetic of weights"
        )
        if wanted is None:
            return output
        return logits, _weights(router, logits, wanted[index]).to(weights.dtype), wanted[index]

    hooks = [router.register_forward_hook(partial(choose, index)) for index, router in enumerate(routers)]
    try:
        yield chosen
    finally:
        for hook in hooks:
            hook.remove()


def _weights(router: Any, logits: Tensor, ids: Tensor) -> Tensor:
    """The weights of these experts by transformers' routers: a sigmoid with DeepSeek-V3's bias, else a softmax."""
    balanced = hasattr(router, "e_score_correction_bias")
    scores = (logits.float().sigmoid() if balanced else logits.float().softmax(-1)).gather(-1, ids)
    if getattr(router, "norm_topk_prob", True):
        scores = scores / scores.sum(-1, keepdim=True)
    return scores * getattr(router, "routed_scaling_factor", 1.0)
