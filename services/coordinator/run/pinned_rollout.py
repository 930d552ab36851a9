"""The rollout of one evaluation, pinned to one version: what it draws for a prompt, or for the episodes of a row."""

import asyncio
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from services.coordinator.episodes.player import Player
from services.coordinator.episodes.wanted_episode import OpenedPrompt, Wanted, must_begin_alike
from services.coordinator.state.group import GroupFailed, PromptLike, Sample
from services.coordinator.state.member import Member
from services.coordinator.state.ports import RolloutClient, Sampling
from services.coordinator.state.seeds import seed_of
from sluice.config.schema import Config
from sluice.errors import SluiceError, first_error
from sluice.policy_version import PolicyVersion


class RolloutFailed(Exception):
    """The rollout of an evaluation failed, and not a reward."""

    def __init__(self, error: SluiceError) -> None:
        super().__init__(str(error))
        self.error = error
        self.member: Member | None = None


class PinnedRollout:
    """Draws samples; whoever makes it holds the rollout's weights lock meanwhile."""

    def __init__(
        self,
        member: Member,
        version: PolicyVersion,
        *,
        n: int,
        config: Config,
        rollouts: RolloutClient,
        player: Player | None,
    ) -> None:
        """`n` samples a prompt; `player` plays episodes."""
        self.member, self.version = member, version
        self._config, self._rollouts, self._player = config, rollouts, player
        self._room = asyncio.Semaphore(max(1, member.capacity // n))
        """A place for every prompt that the rollout takes at once."""
        self._turns = asyncio.Semaphore(member.capacity)
        """A place for every turn of an episode that the rollout takes at once."""

    async def draw(
        self, sampling: Sampling, prompt: PromptLike, n: int, *, request_id: str
    ) -> tuple[list[Sample], PromptLike]:
        """n samples in their order, and the prompt, as its environment opened it where it has one. Raises RolloutFailed."""
        samples: Mapping[int, Sample]
        if prompt.environment:
            samples, prompt = await self._play(sampling, prompt, n, request_id)
        else:
            seeds = {index: _seed(prompt.prompt_id, index) for index in range(n)}
            async with self._room:
                samples = await self._samples(sampling, prompt, seeds, request_id)
        ordered = [samples[index] for index in sorted(samples)]
        if len(ordered) != n:
            short = SluiceError(f"evaluation: {self.member.service_id} returned {len(ordered)} of {n} samples")
            raise RolloutFailed(short)
        return ordered, prompt

    async def _samples(
        self, sampling: Sampling, prompt: PromptLike, seeds: Mapping[int, int], request_id: str
    ) -> dict[int, Sample]:
        """What the pinned rollout answers to one request. Raises RolloutFailed."""
        try:
            return {
                sample.index: sample
                async for sample in self._rollouts.generate(
                    self.member,
                    request_id=request_id,
                    prompt=prompt,
                    seeds=seeds,
                    sampling=sampling,
                    timeout_s=min(self._config.eval.timeout_s, self._config.coordinator.generate_timeout_s),
                    required_version=self.version,
                )
            }
        except SluiceError as error:
            raise RolloutFailed(error) from error

    async def _play(
        self, sampling: Sampling, prompt: PromptLike, n: int, request_id: str
    ) -> tuple[dict[int, Sample], PromptLike]:
        """n episodes on the pinned rollout, and the prompt as their environment opened it."""
        if self._player is None:
            raise SluiceError(f"evaluation: a row names the environment {prompt.environment!r}, the recipe has none")
        begun: list[OpenedPrompt] = []
        turns = [
            _Turns(self, sampling, prompt=prompt, begun=begun, index=index, request_id=request_id) for index in range(n)
        ]
        wanted = [
            Wanted(name=f"{request_id}.{index}", index=index, prompt=prompt, seed=_seed(prompt.prompt_id, 0))
            for index in range(n)
        ]
        try:
            async with asyncio.TaskGroup() as tasks:
                playing = [tasks.create_task(self._player.play(*one)) for one in zip(wanted, turns, strict=True)]
        except BaseExceptionGroup as failures:
            error = first_error(failures)
            raise SluiceError(f"evaluation: {error}") if isinstance(error, GroupFailed) else error from failures
        return {index: task.result() for index, task in enumerate(playing)}, turns[0].prompt

    async def turn(self, sampling: Sampling, prompt: PromptLike, *, index: int, turn: int, request_id: str) -> Sample:
        """One turn of an episode. Raises RolloutFailed."""
        async with self._turns:
            seeds = {index: seed_of("eval", prompt.prompt_id, index, turn)}
            samples = await self._samples(sampling, prompt, seeds, request_id)
        sample = samples.get(index)
        if sample is None or sample.finish_reason not in ("stop", "length"):
            how = "without a sample" if sample is None else f"with {sample.finish_reason}"
            raise RolloutFailed(SluiceError(f"evaluation: {self.member.service_id} ended a turn {how}"))
        return sample

    @property
    def most_tries(self) -> int:
        """Tries that one episode gets."""
        return self._config.coordinator.max_attempts


class _Turns:
    """Policy of one episode of an evaluation: all turns by one rollout, under one version."""

    def __init__(
        self,
        pinned: PinnedRollout,
        sampling: Sampling,
        *,
        prompt: PromptLike,
        begun: list[OpenedPrompt],
        index: int,
        request_id: str,
    ) -> None:
        """`begun` is of all episodes of the row; it gets the chat that is opened first, and the others must be like it."""
        self._pinned, self._sampling = pinned, sampling
        self._begun = begun
        self._index, self._request_id, self._tries = index, request_id, 1
        self.prompt = prompt
        """The row, then the prompt as opened."""

    def begin(self) -> None:
        """Policy.begin."""

    def opened(self, prompt: OpenedPrompt) -> None:
        """Policy.opened. Raises GroupFailed."""
        if not self._begun:
            self._begun.append(prompt)
        must_begin_alike(self._begun[0], prompt)
        self.prompt = prompt

    def begun(self, prompt: OpenedPrompt) -> np.ndarray:
        """Policy.begun: each sample is measured by itself."""
        self.prompt = prompt
        return prompt.token_ids

    async def turn(self, context: np.ndarray, *, turn: int, max_tokens: int) -> Sample:
        """Policy.turn. Raises RolloutFailed, because all samples need one version."""
        return await self._pinned.turn(
            replace(self._sampling, max_tokens=max_tokens),
            OpenedPrompt(of=self.prompt, token_ids=context, text=""),
            index=self._index,
            turn=turn,
            request_id=f"{self._request_id}.{self._index}.{self._tries}.{turn}",
        )

    def lost(self, tokens: int) -> None:
        """Policy.lost: samples of evaluations are in no account."""

    def failed(self, *, reason: str, fault: str) -> None:
        """Policy.failed."""
        if self._tries >= self._pinned.most_tries:
            raise GroupFailed(reason=reason, fault=fault)
        self._tries += 1


def _seed(prompt_id: str, index: int) -> int:
    """A seed that is the same in every evaluation, so that versions are compared with equal randomness."""
    return seed_of("eval", prompt_id, index)
