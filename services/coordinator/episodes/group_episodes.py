"""Fills a group with episodes, which are played side by side, each in a task of its own: a slow one holds no other."""

import asyncio

from services.coordinator.episodes.group_account import Playing
from services.coordinator.episodes.group_turns import GroupTurns, Reports
from services.coordinator.episodes.player import Player
from services.coordinator.episodes.wanted_episode import Wanted
from services.coordinator.state.group import Group, Phase
from services.coordinator.state.ports import RolloutClient
from services.coordinator.state.run_context import RunContext
from services.coordinator.state.seeds import seed_of
from sluice.errors import first_error
from sluice.telemetry.traces.tracer import work_on


class GroupEpisodes:
    """The first half of a group's path, samples, for a row with an environment."""

    def __init__(self, run: RunContext, *, player: Player, rollouts: RolloutClient, reports: Reports) -> None:
        self._run, self._player, self._rollouts, self._reports = run, player, rollouts, reports

    async def fill(self, group: Group) -> None:
        """Fills `group.samples`, and gives the group the prompt of the opened chat. Raises GroupFailed."""
        group.phase, group.start_version = Phase.PENDING, None
        playing = Playing(group=group)
        while missing := [index for index in range(self._run.config.rollout.n) if index not in group.samples]:
            try:
                # A task of its own: where a child fails, a TaskGroup of Python 3.11 leaves its task marked as cancelled.
                await asyncio.create_task(self._play_all(playing, missing), name=f"{group.group_id} episodes")
            except BaseExceptionGroup as failures:
                raise first_error(failures) from failures

    async def _play_all(self, playing: Playing, missing: list[int]) -> None:
        async with asyncio.TaskGroup() as tasks:
            for index in missing:
                tasks.create_task(self._play(playing, index), name=f"{playing.group.group_id}.{index}")

    async def _play(self, playing: Playing, index: int) -> None:
        group, seed = playing.group, self._run.config.run.seed
        work_on(group.trace_id)
        policy = GroupTurns(self._run, rollouts=self._rollouts, reports=self._reports, playing=playing, index=index)
        wanted = Wanted(
            name=f"{group.group_id}.{index}",
            index=index,
            prompt=group.prompt if playing.opened is None else playing.opened.of,
            # Without the try: an episode that begins again gets the messages that the others have.
            seed=seed_of(seed, group.prompt.prompt_id, group.admission),
        )
        playing.begin_try(index)
        fault = ""
        try:
            playing.done(index, await self._player.play(wanted, policy))
        except Exception as error:
            fault = str(error)
            raise
        finally:
            playing.end_try(index, fault=fault)
            playing.not_sampling(index)
