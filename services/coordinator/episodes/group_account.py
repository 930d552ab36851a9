"""The account of one group whose episodes are being played: attempts, versions under way, lost tokens."""

import time
from dataclasses import dataclass, field

from services.coordinator.episodes.wanted_episode import OpenedPrompt, must_begin_alike
from services.coordinator.state.board import Board
from services.coordinator.state.group import Attempt, Group, Phase, Sample


@dataclass(kw_only=True, slots=True)
class Playing:
    """A group's episodes. A group has one Attempt for each number: how all episodes fared that came to that try."""

    group: Group
    opened: OpenedPrompt | None = None
    tries: dict[int, int] = field(default_factory=dict)
    """The number of each episode's present try, by index; from 1 on."""
    _versions: dict[int, int] = field(default_factory=dict)
    """The oldest version of each episode under way that has begun to sample."""
    _attempts: dict[int, Attempt] = field(default_factory=dict)
    _under_way: dict[int, int] = field(default_factory=dict)
    """How many episodes are in each try now."""

    def attempt_of(self, index: int) -> Attempt:
        """The present try of an episode."""
        return self._attempts[self.tries[index]]

    def begin_try(self, index: int) -> None:
        """An episode comes to its next try."""
        number = self.tries[index] = self.tries.get(index, 0) + 1
        self.group.attempt = max(self.group.attempt, number)
        if number not in self._attempts:
            attempt = Attempt(number=number, rollout="", version=-1, asked=0, started_s=time.time())
            self._attempts[number] = attempt
            self.group.attempts.append(attempt)
        attempt = self._attempts[number]
        attempt.asked += 1
        attempt.ended_s = -1.0
        self._under_way[number] = self._under_way.get(number, 0) + 1

    def end_try(self, index: int, *, fault: str = "") -> None:
        """The present try of an episode ends; empty: with a sample, or because the group ends."""
        number = self.tries[index]
        attempt = self._attempts[number]
        attempt.fault = attempt.fault or fault
        self._under_way[number] -= 1
        if not self._under_way[number]:
            attempt.ended_s = time.time()

    def sampling(self, index: int, *, rollout: str, version: int, oldest: int) -> None:
        """A rollout that holds `version` samples a turn of an episode whose oldest version is then `oldest`."""
        attempt = self._attempts[self.tries[index]]
        names = attempt.rollout.split(", ") if attempt.rollout else []
        if rollout not in names:
            attempt.rollout = ", ".join([*names, rollout])
        attempt.version = version if attempt.version < 0 else attempt.version
        self._versions[index] = oldest
        self._note()

    def received(self, index: int, *, tokens: int) -> None:
        """Tokens came from a rollout."""
        self._attempts[self.tries[index]].tokens += tokens

    def not_sampling(self, index: int) -> None:
        """The episode has begun again, or has ended."""
        self._versions.pop(index, None)
        self._note()

    def done(self, index: int, sample: Sample) -> None:
        """An episode has ended well."""
        self.group.samples[index] = sample
        self._attempts[self.tries[index]].samples += 1

    def take_prompt(self, prompt: OpenedPrompt) -> None:
        """The group's prompt is that of the chat as opened. Raises GroupFailed where episodes begin differently."""
        must_begin_alike(self.share_prompt(prompt), prompt)

    def share_prompt(self, prompt: OpenedPrompt) -> OpenedPrompt:
        """The group's prompt: that of the first chat that begins."""
        if self.opened is None:
            self.group.prompt = self.opened = prompt
        return self.opened

    def drop_too_old(self, board: Board) -> None:
        """Drops samples that could not be trained in time with the others, because an episode begins again."""
        old = [
            index
            for index, sample in self.group.samples.items()
            if not board.may_go_on(admission=self.group.admission, version=sample.oldest_version)
        ]
        for index in old:
            self.group.lost_tokens += self.group.samples.pop(index).sampled_tokens

    def _note(self) -> None:
        group = self.group
        group.start_version = min(self._versions.values(), default=None)
        group.phase = Phase.IN_FLIGHT if self._versions or group.samples else Phase.PENDING
