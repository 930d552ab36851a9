"""`data.sampler: difficulty`: which prompts are drawn, what is known of them, and what a restart knows again."""

import itertools
import json
import math
import random
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from services.coordinator.groups.assignment import Assigner
from services.coordinator.prompts.difficulty import PASSES, WINDOW, Difficulty, calibration
from services.coordinator.prompts.feed import PromptFeed
from services.coordinator.prompts.order import row_index
from services.coordinator.prompts.outcome_states import LEAN, MIXED, RECENT, RIGHT, STATES, STREAK, WRONG, OutcomeStates
from services.coordinator.recovery.repair import Repair
from services.coordinator.state.group import Admission, Group
from services.coordinator.state.ledger_row import ledger_row
from services.coordinator.storage.run_files import RunFiles
from sluice.dapo.signal_chance import expected_signal_chance
from sluice.errors import DataError
from sluice.report.group_page import group_page
from tests.unit.coordinator.fakes import FakePrompt, Stage, make_config, make_reward, make_sample
from tests.unit.prompts.prompt_cases import ListSource, stream_of

N = 8


@dataclass
class Data:
    """Rows whose pass rate is known; counts what is asked of the order."""

    rates: list[float]
    unusable: frozenset[int] = frozenset()
    places: int = 0
    tried: Counter[int] = field(default_factory=Counter)

    @property
    def size(self) -> int:
        return len(self.rates)

    def place(self, position: int) -> tuple[int, int]:
        self.places += 1
        return row_index(position, size=self.size, seed=3, shuffle=True)

    def fits(self, row: int) -> bool:
        self.tried[row] += 1
        return row not in self.unusable

    def id_of(self, row: int) -> str:
        return f"p{row}"


@dataclass
class Run:
    """A run of draws without anything around it: every group ends `lag` admissions after its own."""

    data: Data
    seed: int = 0
    lag: int = 20
    sampler: Difficulty = field(init=False)
    cursor: str = "0:0"
    drawn: list[int] = field(default_factory=list)
    chosen: list[bool] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    kept: list[bool] = field(default_factory=list)
    open: list[Group] = field(default_factory=list)
    ledger: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.sampler = Difficulty(self.data)
        self.samples = random.Random(self.seed)

    def go(self, groups: int) -> "Run":
        for _ in range(groups):
            number = len(self.drawn)
            position = int(self.sampler.choose(self.cursor).removesuffix(":0"))
            epoch, row = self.data.place(position)
            self.cursor = f"{position + 1}:0"
            predicted = self.sampler.admitted(row)
            self.positions.append(position)
            self.drawn.append(row)
            self.chosen.append(not self.sampler.in_turn(epoch, row))
            self.open.append(group(number, row, predicted=predicted, chosen=self.chosen[-1]))
            if len(self.open) > self.lag:
                self.end(self.open.pop(0), number // 30)
        return self

    def end(self, group: Group, version: int) -> None:
        assert group.admitted is not None
        accs = [float(self.samples.random() < self.data.rates[group.admitted.row]) for _ in range(N)]
        group.samples = {index: make_sample(index, version=version) for index in range(N)}
        group.rewards = [make_reward(acc) for acc in accs]
        self.kept.append(0 < sum(accs) < N)
        self.ledger.append(ledger_row(group, term="trained" if self.kept[-1] else "filtered_other"))
        self.sampler.ended(group)


def group(number: int, row: int, *, predicted: float = 0.5, chosen: bool = False) -> Group:
    admitted = Admission(time_s=0.0, rank=0, next_step=0, epoch=0, row=row, predicted=predicted, chosen=chosen)
    prompt = FakePrompt(prompt_id=f"p{row}")
    return Group(group_id=f"r-{number:07d}", admission=number, prompt=prompt, cursor="", admitted=admitted)


def observe(states: OutcomeStates, row: int, *, right: float) -> None:
    """A group whose samples are right or wrong."""
    states.observe(row, right=right, signal=0 < right < 1)


def a_mixture(size: int) -> list[float]:
    """A third teaches, a third is known, a third is hopeless."""
    return [(0.5, 1.0, 0.0)[row % 3] for row in range(size)]


def test_the_mean_chance_of_a_signal_over_a_beta() -> None:
    assert expected_signal_chance(1, 1, 8) == pytest.approx(1 - 2 / 9)  # uniform: every count is as likely
    rates = np.random.default_rng(0).beta(3.0, 0.7, 40_000)
    naive = float((1 - rates**16 - (1 - rates) ** 16).mean())
    assert expected_signal_chance(3.0, 0.7, 16) == pytest.approx(naive, abs=5e-3)
    with pytest.raises(ValueError, match="right > 0"):
        expected_signal_chance(0, 1, 8)


def test_a_row_is_in_the_state_that_its_newest_groups_make() -> None:
    states, seen = OutcomeStates(2), list[int]()
    for right in (0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.25, 0.4, 0.9, 1.0):
        observe(states, 1, right=right)
        seen.append(int(states._state[1]))
    assert seen == [
        *range(WRONG, WRONG + STREAK),
        WRONG + 2,
        RIGHT,
        RIGHT + 1,
        WRONG,
        MIXED,
        MIXED + 1,
        MIXED + 2,
        RIGHT,
    ]
    assert states._state[0] == 0
    assert max(seen) < STATES


def test_a_state_has_the_chance_that_was_seen_of_it_and_leans_on_all_where_little_was() -> None:
    states = OutcomeStates(3)
    observe(states, 0, right=0.5)  # of an unseen row
    observe(states, 0, right=0.0)  # of a mixed one
    keep = 1 - 1 / RECENT
    signals, groups = keep, keep + 1
    mean = (signals + LEAN / 2) / (groups + LEAN)
    assert states.chances([2, 0]) == pytest.approx([(keep + LEAN * mean) / (keep + LEAN), mean])
    for _ in range(1500):
        observe(states, 1, right=0.0)
    assert states.chances([1])[0] < 0.01, "hopeless"
    for _ in range(1500):
        observe(states, 1, right=0.5)
    assert states.chances([1])[0] > 0.98, "what was seen long ago has faded"


@pytest.fixture(scope="module")
def mixed() -> Run:
    return Run(Data(a_mixture(90))).go(700)


def test_more_groups_have_a_signal_than_in_order_and_as_many_as_predicted(mixed: Run) -> None:
    seen = mixed.kept[250:]
    assert sum(seen) / len(seen) > 0.65, "a third of the data has a signal"
    curve = calibration(mixed.sampler._judged)
    assert sum(groups for groups, *_ in curve) == len(mixed.kept)
    assert mixed.sampler.metrics(mixed.cursor)["sampling/calibration_error"] < 0.15
    assert mixed.sampler.metrics(mixed.cursor)["sampling/coverage"] == 1.0
    teaching = Counter(row for row in mixed.drawn[250:] if row % 3 == 0)
    assert len(teaching) == 30
    assert max(teaching.values()) < 1.6 * min(teaching.values()), "not the same few again and again"


def test_where_all_prompts_are_alike_nearly_none_is_passed_over() -> None:
    alike = Run(Data([0.5] * 60), lag=5).go(600)
    assert alike.positions[-1] < 1.1 * 600, "no more than those whose group still runs, where two passes meet"
    times = Counter(alike.drawn)
    assert max(times.values()) - min(times.values()) <= 3, "drawn at random, 60 rows would come from 4 to 17 times"


def test_the_first_pass_is_that_of_the_order_and_later_ones_go_on_in_it(mixed: Run) -> None:
    size = len(mixed.data.rates)
    assert mixed.positions[:size] == list(range(size)), "nothing is passed over unseen"
    ahead = [after - before for before, after in itertools.pairwise(mixed.positions)]
    assert min(ahead) == 1
    assert 2 < max(ahead) <= WINDOW
    for place in range(size, len(mixed.drawn)):
        running = set(mixed.drawn[max(0, place - mixed.lag) : place])
        assert not mixed.chosen[place] or mixed.drawn[place] not in running, "its group has not ended"


def test_every_prompt_comes_in_ten_passes_whatever_its_chance(mixed: Run) -> None:
    size = 12
    run = Run(Data([1.0, *[0.5] * (size - 1)]), lag=3).go(PASSES * size * 3)
    for first in range(0, len(run.drawn) - PASSES * size, size):
        assert set(run.drawn[first : first + PASSES * size]) == set(range(size)), "row 0 never has a signal"
    turns = [sum(mixed.sampler.in_turn(epoch, row) for row in range(1, 1000, 2)) for epoch in range(1, PASSES + 1)]
    assert sum(turns) == 500
    assert 30 < min(turns) <= max(turns) < 70, "odd rows do not all have their turn in odd passes"


def test_a_row_that_is_no_prompt_is_tried_once_and_never_drawn() -> None:
    data = Data([0.5] * 50, unusable=frozenset(range(10)))
    sampler = Difficulty(data)
    positions = [int(sampler.choose(f"{start}:0").removesuffix(":0")) for start in range(50, 250)]
    assert {data.place(position)[1] for position in positions} == set(range(10, 50))
    assert max(data.tried.values()) == 1


def test_a_draw_asks_as_much_of_a_million_rows_as_of_a_hundred_and_needs_few_bytes() -> None:
    size = 1_000_000
    data = Data([0.5])
    data.rates = range(size)  # type: ignore[assignment]
    sampler = Difficulty(data)
    sampler._rows = counting = Counting(size)  # type: ignore[assignment]
    assert all(sampler.choose(f"{size + number}:0") for number in range(60))
    assert counting.asked == 60 * WINDOW
    assert sampler._fits.nbytes + sampler.states._state.nbytes == 2 * size


class Counting:
    """Positions that are rows, counted."""

    def __init__(self, size: int) -> None:
        self.size, self.asked = size, 0

    def place(self, position: int) -> tuple[int, int]:
        self.asked += 1
        return divmod(position, self.size)

    def fits(self, row: int) -> bool:
        return True


def test_a_restarted_coordinator_chooses_what_the_former_one_would_have_chosen(mixed: Run) -> None:
    again = Difficulty(mixed.data)
    rows = [json.loads(json.dumps(row)) for row in mixed.ledger]
    for row in rows:
        again.remember(row)
    for open_group in mixed.open:
        again.reopened(open_group)
    position = int(mixed.cursor.removesuffix(":0"))

    def choices(sampler: Difficulty) -> list[str]:
        return [sampler.choose(f"{position + ahead}:0") for ahead in range(100)]

    expected = choices(mixed.sampler)
    assert choices(again) == expected
    assert 10 < len(set(expected)) < 80
    strange = [
        rows[0] | {"prompt_row": 1 << 40},
        rows[0] | {"prompt_id": "of other data"},
        rows[0] | {"prompt_epoch": -1},
        {"prompt_id": "p0", "admission": 0},
        rows[0] | {"acc_mean": None},
        rows[0] | {"acc_mean": -1.0},
        rows[0] | {"acc_mean": math.nan},
    ]
    for row in strange:
        again.remember(row)
    assert choices(again) == expected


@pytest.mark.parametrize(("part", "state"), [(0.3, WRONG), (0.5, RIGHT)])
def test_a_group_whose_samples_all_have_the_same_part_of_a_point_has_no_signal(part: float, state: int) -> None:
    data = Data(a_mixture(30))
    sampler, again, one = Difficulty(data), Difficulty(data), group(0, 4)
    one.samples = {index: make_sample(index, version=0) for index in range(N)}
    one.rewards = [make_reward(part) for _ in range(N)]
    sampler.ended(one)
    again.remember(ledger_row(one, term="filtered_other"))
    assert int(sampler.states._state[4]) == int(again.states._state[4]) == state
    assert sampler.states.chances([0, 4]) == again.states.chances([0, 4])
    assert [signal for _, signal in sampler._judged] == [False]


async def test_a_group_that_a_repair_takes_off_the_board_keeps_its_row_from_no_draw() -> None:
    stage, run = Stage(make_config()), Run(Data(a_mixture(90))).go(40)
    left = run.open[-1]
    assert left.admitted is not None
    assert left.admitted.row in run.sampler._open
    stage.board.add(left)
    stage.conductor.admitter._sampler = run.sampler
    assigner = Assigner(stage.run, stage.records())
    Repair(stage.run, stage.records(), admitter=stage.conductor.admitter, assigner=assigner)._take_off_the_board(
        left.group_id
    )
    assert not stage.board.open
    assert left.admitted.row not in run.sampler._open


def test_the_life_of_a_group_says_how_its_prompt_was_drawn(mixed: Run) -> None:
    row = next(row for row in reversed(mixed.ledger) if row["chosen"])
    page = group_page(row, config=make_config())
    assert f", taken for its chance of a signal, which was {row['predicted']:.2f}" in page
    in_turn = next(row for row in mixed.ledger if not row["chosen"])
    page = group_page(in_turn, config=make_config())
    assert f", taken in its turn; its chance of a signal was {in_turn['predicted']:.2f}" in page
    assert "chance" not in group_page(row | {"predicted": -1.0}, config=make_config())


def test_a_submitted_prompt_is_not_overtaken_and_its_outcome_is_of_no_row() -> None:
    data = Data([1.0, *[0.5] * 19])
    sampler = Difficulty(data, is_submitted=lambda cursor: cursor.endswith(":0"))
    position = next(p for p in range(20, 80) if data.place(p)[1] == 0 and not sampler.in_turn(*data.place(p)))
    for row in (*range(20), *[0] * 40):
        observe(sampler.states, row, right=data.rates[row])
    assert sampler.choose(f"{position}:0") == f"{position}:0"
    assert sampler.choose(f"{position}:1") == f"{position + 1}:1"
    submitted = group(0, 3)
    assert submitted.admitted is not None
    submitted.admitted = Admission(time_s=0.0, rank=0, next_step=0, epoch=-1, row=3)
    sampler.ended(submitted)
    sampler.reopened(submitted)
    assert not sampler._open
    assert not sampler._judged


def test_a_cursor_with_a_row_of_a_former_version_finds_its_prompt_again(tmp_path: Path) -> None:
    texts = [f"{number}+1=" for number in range(7)]
    data = stream_of(ListSource(texts), max_prompt_length=10)
    feed = PromptFeed(data=data, files=RunFiles(tmp_path), max_prompt_tokens=10)
    prompt, after = feed.next("9:0:4")
    assert (prompt.text, after, feed.origin("9:0:4", after)) == ("4+1=", "9:0", (1, 4))
    assert feed.next(after)[1] == "10:0", "the order goes on where it was"
    assert data.fits(4)
    assert data.size == 7
    with pytest.raises(
        DataError, match=r"row 7 was drawn before and is no usable prompt any more \(7 rows\).*put them back"
    ):
        feed.next("9:0:7")
