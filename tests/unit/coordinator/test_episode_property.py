"""Whatever fails, in any order: the ledger closes, no episode stays open, every place is given back, the age bound holds."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from services.coordinator.state.group import Sample
from services.coordinator.state.member import Member, Role
from services.coordinator.state.ports import WrongAnswer
from sluice.errors import Expired, InvalidRequest, NotFound, Overloaded, SluiceError, Unavailable
from tests.unit.coordinator.fake_episodes import EpisodeStage, FakeEnvironments
from tests.unit.coordinator.fakes import FakeRollouts, running, settle

ERRORS = (
    *(Unavailable("gone"), Expired("late"), WrongAnswer("odd", tokens=3), NotFound("not open")),
    *(Overloaded("full"), InvalidRequest("no"), SluiceError("boom")),
)
FAULTS = st.dictionaries(st.integers(0, 40), st.sampled_from(ERRORS), max_size=12)


class Failing(FakeRollouts):
    """Raises the error that stands beside the number of the request."""

    def __init__(self, faults: dict[int, SluiceError]) -> None:
        super().__init__()
        self.faults, self.asked = faults, 0

    async def generate(self, member: Member, **keywords: Any) -> AsyncIterator[Sample]:
        self.asked += 1
        if (error := self.faults.pop(self.asked, None)) is not None:
            raise error
        async for sample in super().generate(member, **keywords):
            yield sample


@settings(max_examples=25, deadline=None)
@given(opens=FAULTS, steps=FAULTS, turns=FAULTS, places=st.integers(1, 5), cancelled=st.integers(0, 30))
def test_whatever_fails_the_ledger_closes_and_no_episode_stays_open(
    opens: dict[int, SluiceError],
    steps: dict[int, SluiceError],
    turns: dict[int, SluiceError],
    places: int,
    cancelled: int,
) -> None:
    by_call = {"open": opens, "step": steps, "close": {}}

    def fails(service_id: str, call: str, count: int) -> SluiceError | None:
        return by_call[call].get(count)

    async def scenario() -> None:
        stage = EpisodeStage(FakeEnvironments(fails=fails), rollouts=Failing(dict(turns)), hosts=2, places=places)
        for place in range(2):
            stage.add_member(Role.ROLLOUT, f"rollout-{place}", version=0)
        async with running(stage):  # which looks at the ledger's sums when it ends
            for second in range(cancelled):
                stage.fleet.end_pauses(now_s=stage.clock.now())
                await stage.clock.advance(2.0)
                await settle()
                if second % 8 == 7:
                    stage.add_member(Role.ROLLOUT, f"rollout-{second}", version=0)
            assert all(0 <= stage.board.next_step - one.oldest_version <= 1 for one in stage.board.queued.values())
        await settle()
        assert not stage.environments.opened
        # The admitter may have been cancelled between the places of a group and the group's task.
        taken = {member.outstanding for member in stage.fleet.members.values() if member.role is Role.ROLLOUT}
        assert taken <= {0, stage.config.rollout.n}
        assert not any(one.outstanding for one in stage.fleet.members.values() if one.role is Role.ENVIRONMENT)

    asyncio.run(scenario())
