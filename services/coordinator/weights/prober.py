"""The probe of a rollout before its first group: does its engine compute the same as other rollouts' engines?

The digest covers the bytes that arrived. An engine could still serve something else: a packed copy or a tied head that
was not renewed, a shard in the wrong place, numbers that are not finite. So the rollout completes one prompt greedily, and
its log-probabilities are compared with those of rollouts of the same engine and device at the same version. The majority is
right; in a tie the probed rollout is wrong. An update of one step is smaller than the tolerance: the probe finds an engine
that serves other weights, not an engine that is one step behind.

Waits: for the rollout's answer, at most `generate_timeout_s`; for another rollout's answer, at most `weights.timeout_s`.
"""

import time
from dataclasses import dataclass, field

import numpy as np
import structlog

from services.coordinator.state.fleet import Fleet
from services.coordinator.state.group import PromptLike, Sample
from services.coordinator.state.member import Member, Role
from services.coordinator.state.ports import RolloutClient, Sampling
from sluice.config.schema import Config
from sluice.errors import SluiceError, TransferError
from sluice.policy_version import PolicyVersion

log = structlog.get_logger(__name__)

PROBE_TOKENS = 8
"""Tokens of a probe. Chosen: enough to pass through every layer's cache; a token is one step of the engine."""

TOLERANCE_NATS = {"float32": 1e-3, "bfloat16": 0.25}
"""By `model.dtype`, the largest difference of a greedy token's log-probability between two engines of one kind. Chosen: 80
and 2 times the largest difference measured between two kinds (vLLM, transformers); within one kind, on a CPU, the measured
difference was 0."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeAnswer:
    """A greedy completion."""

    token_ids: np.ndarray
    """int32[T]."""
    logprobs: np.ndarray
    """float32[T], nats."""


@dataclass(kw_only=True, slots=True)
class _Round:
    """The answers of rollouts of one kind at one version, by service_id."""

    version: PolicyVersion
    answers: dict[str, ProbeAnswer] = field(default_factory=dict)


class Prober:
    """Probes rollouts, and remembers the answers at the newest version."""

    def __init__(self, *, config: Config, fleet: Fleet, rollouts: RolloutClient, prompt: PromptLike) -> None:
        """`prompt` is the same for the whole run."""
        self._config, self._fleet, self._rollouts, self._prompt = config, fleet, rollouts, prompt
        self._rounds: dict[str, _Round] = {}
        """The answers by engine."""
        self._asked = 0

    async def check(self, member: Member, version: PolicyVersion) -> list[Member]:
        """Probes a rollout that holds `version`; returns READY rollouts whose answers differ from most.

        Raises TransferError when the rollout's answer is wrong or differs from most, SluiceError without an answer.
        """
        started = time.monotonic()
        answer = await self._ask(member, version, limit_s=self._config.coordinator.generate_timeout_s)
        current = self._rounds.get(member.engine)
        if current is None or current.version != version:
            current = self._rounds[member.engine] = _Round(version=version)
        if not current.answers.keys() - {member.service_id}:
            await self._ask_another(member, current)
        current.answers[member.service_id] = answer
        elapsed_ms = 1e3 * (time.monotonic() - started)
        log.info("probed", service_id=member.service_id, version=version.number, probe_ms=round(elapsed_ms, 1))
        return self._odd_ones(member, current)

    def _odd_ones(self, member: Member, current: _Round) -> list[Member]:
        mine = current.answers[member.service_id]
        tolerance = TOLERANCE_NATS[self._config.model.dtype]
        off = {name: difference_nats(mine, other) for name, other in current.answers.items()}
        against = sorted(name for name, nats in off.items() if nats > tolerance)
        if 2 * len(against) >= len(current.answers):
            raise TransferError(
                f"{member.service_id}: its probe at version {current.version.number} differs by up to "
                f"{max(off[name] for name in against):.3g} nats from that of {', '.join(against)} (the same engine, "
                f"{member.engine}); {tolerance:g} are allowed. Its weights arrived whole, so its engine computes "
                "something else"
            )
        return [other for other in self._fleet.of(Role.ROLLOUT) if other.service_id in against]

    async def _ask_another(self, member: Member, current: _Round) -> None:
        """Adds a second answer for comparison, if another rollout of the member's kind holds the version and answers."""
        kin = [
            other
            for other in self._fleet.of(Role.ROLLOUT)
            if other is not member and other.engine == member.engine and other.version == current.version
        ]
        if (other := self._fleet.least_loaded(kin)) is None:
            return
        try:
            limit = self._config.weights.timeout_s
            current.answers[other.service_id] = await self._ask(other, current.version, limit_s=limit)
        except SluiceError as error:  # the rollout may hold another version by now; its own probe finds its faults
            log.info("probe_not_compared", service_id=member.service_id, other=other.service_id, reason=str(error))

    async def _ask(self, member: Member, version: PolicyVersion, *, limit_s: float) -> ProbeAnswer:
        self._asked += 1
        tokens = min(PROBE_TOKENS, self._config.data.max_response_length)
        samples = [
            sample
            async for sample in self._rollouts.generate(
                member,
                request_id=f"probe-{version.lineage}{version.number}-{self._asked}",
                prompt=self._prompt,
                seeds={0: 0},
                sampling=Sampling(temperature=0.0, max_tokens=tokens),
                timeout_s=limit_s,
                required_version=version,
            )
        ]
        if fault := _fault(samples, version):
            raise TransferError(f"{member.service_id}: its probe at version {version.number} {fault}")
        return ProbeAnswer(token_ids=samples[0].token_ids, logprobs=samples[0].logprobs)


def difference_nats(one: ProbeAnswer, other: ProbeAnswer) -> float:
    """The largest difference of log-probabilities up to and with the first token in which two answers differ.

    Each answer reports its own best token: near a tie two answers differ in the token and hardly in the log-probability.
    """
    both = min(len(one.token_ids), len(other.token_ids))
    differs = np.flatnonzero(one.token_ids[:both] != other.token_ids[:both])
    end = int(differs[0]) + 1 if len(differs) else both
    return float(np.abs(one.logprobs[:end] - other.logprobs[:end]).max())


def _fault(samples: list[Sample], version: PolicyVersion) -> str:
    """What is wrong with an answer, without a comparison; empty for a good answer."""
    if len(samples) != 1 or not len(samples[0].token_ids):
        return "brought no completion"
    [sample] = samples
    if not np.isfinite(sample.logprobs).all():
        return "has log-probabilities that are not finite"
    if wrong := [span.version for span in sample.spans if span.version != version]:
        return f"is stamped version {wrong[0].number} of lineage {wrong[0].lineage}, not of {version.lineage}"
    return ""
