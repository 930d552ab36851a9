"""`data.sampler: difficulty`: which prompts are drawn, what is known of them, and what a restart knows again."""

import json
import math
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from services.coordinator.groups.assignment import Assigner
from services.coordinator.prompts.difficulty import CANDIDATES, FLOOR_EVERY, REST, Difficulty, calibration
from services.coordinator.prompts.fading_rates import HALF_LIVES, FadingRates
from services.coordinator.prompts.feed import PromptFeed
from services.coordinator.prompts.order import row_index
from services.coordinator.prompts.pass_rates import MOST_FAMILIES, PRIOR_SAMPLES, PassRates, length_band
from services.coordinator.recovery.repair import Repair
from services.coordinator.state.group import Admission, Group
from services.coordinator.state.ledger_row import ledger_row
from services.coordinator.storage.run_files import RunFiles
from sluice.dapo.signal_chance import expected_signal_chance, signal_chance
from sluice.errors import DataError
from sluice.report.group_page import group_page
from tests.unit.coordinator.fakes import FakePrompt, Stage, make_config, make_reward, make_sample
from tests.unit.prompts.prompt_cases import ListSource, stream_of

N = 8


@dataclass
class Data:
    """Rows whose pass rate is known, in one family for each source; counts what is asked of the order."""

    rates: list[float]
    source_of: Callable[[int], str] = lambda row: "one"
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

    def features(self, row: int) -> tuple[str, int]:
        return self.source_of(row), 10

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
    in_order: list[int] = field(default_factory=list)
    kept: list[bool] = field(default_factory=list)
    open: list[Group] = field(default_factory=list)
    ledger: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.sampler = Difficulty(self.data, seed=self.seed, n=N)
        self.samples = random.Random(self.seed)

    def go(self, groups: int, *, version: Callable[[int], int] = lambda admission: admission // 30) -> "Run":
        for _ in range(groups):
            number = len(self.drawn)
            chosen = self.sampler.choose(self.cursor, admission=number, version=version(number))
            position, submitted, *again = map(int, chosen.split(":"))
            row = again[0] if again else self.data.place(position)[1]
            if not again:
                position += 1
                self.in_order.append(row)
            self.cursor = f"{position}:{submitted}"
            predicted = self.sampler.admitted(row, admission=number, version=version(number))
            self.drawn.append(row)
            self.chosen.append(bool(again))
            self.open.append(group(number, row, predicted=predicted, chosen=bool(again)))
            if len(self.open) > self.lag:
                self.end(self.open.pop(0), version(number))
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


def a_mixture(size: int) -> list[float]:
    """A third teaches, a third is known, a third is hopeless."""
    return [(0.5, 1.0, 0.0)[row % 3] for row in range(size)]


def test_the_chance_of_a_signal_and_its_mean_over_a_beta() -> None:
    assert signal_chance(np.array([0.0, 0.5, 1.0, 0.1]), 2).tolist() == pytest.approx([0, 0.5, 0, 0.18])
    assert signal_chance(np.array([0.3]), 1)[0] == pytest.approx(0)
    assert expected_signal_chance(1, 1, 8) == pytest.approx(1 - 2 / 9)  # uniform: every count is as likely
    rates = np.random.default_rng(0).beta(3.0, 0.7, 40_000)
    assert expected_signal_chance(3.0, 0.7, 16) == pytest.approx(float(signal_chance(rates, 16).mean()), abs=5e-3)
    with pytest.raises(ValueError, match="n must be >= 1"):
        signal_chance(np.array([0.5]), 0)
    with pytest.raises(ValueError, match="right > 0"):
        expected_signal_chance(0, 1, 8)


def test_outcomes_fade_with_versions_and_their_order_is_no_matter() -> None:
    outcomes = [(0, 6.0, 3), (1, 2.0, 40), (0, 0.0, 20), (1, 8.0, 0), (0, 8.0, 21)]

    def known(order: list[tuple[int, float, int]]) -> list[float]:
        rates = PassRates(rows=2, n=N, half_life=16.0)
        family = rates.family("s", 10)
        for row, right, version in order:
            rates.observe(row, family=family, right=right, samples=N, version=version, chosen=False)
        return np.concatenate(rates.posterior(np.arange(2), np.array([family, family]), version=50)).tolist()

    assert known(outcomes) == pytest.approx(known(outcomes[::-1]), rel=1e-6)
    one = PassRates(rows=1, n=N, half_life=16.0)
    family = one.family("s", 10)
    one.observe(0, family=family, right=6.0, samples=N, version=4, chosen=True)
    for version, weight in ((4, 1.0), (4 + 16, 0.5), (2, 1.0), (1_000_000, 0.0)):
        right, wrong = one.posterior(np.array([0]), np.array([family]), version=version)
        prior = one.prior(family, version=version)
        assert min(prior) > 0
        assert (right[0], wrong[0]) == pytest.approx((prior[0] + 6 * weight, prior[1] + 2 * weight))
        assert one.of_row(0, family, version=version) == pytest.approx((right[0], wrong[0]))


@pytest.mark.parametrize("fading", [True, False])
def test_the_half_life_that_told_outcomes_best_is_believed(fading: bool) -> None:
    rates, samples = FadingRates(20, N), random.Random(0)
    family = rates.family("s", 10)
    assert rates.best.half_life == HALF_LIVES[0]
    passes = [samples.random() for _ in range(20)]
    for version in range(60):
        for row in range(20):
            if fading and samples.random() < 0.3:
                passes[row] = samples.random()
            right = sum(samples.random() < passes[row] for _ in range(N))
            rates.observe(row, family=family, right=right, samples=N, version=version, chosen=False)
    assert rates.best.half_life <= 8 if fading else rates.best.half_life >= 32


def test_what_was_never_seen_is_judged_by_its_source_and_length() -> None:
    rates = PassRates(rows=100, n=N, half_life=16.0)
    easy, hard, other = rates.family("a", 8), rates.family("a", 64), rates.family("b", 8)
    assert len({easy, hard, other}) == 3
    assert rates.family("a", 9) == easy
    assert length_band(0) == 0
    for row in range(40):
        rates.observe(row, family=easy if row % 2 else hard, right=8.0 * (row % 2), samples=N, version=0, chosen=False)
    priors = [rates.prior(family, version=0) for family in (easy, hard, other, rates.family("a", 999))]
    assert [right / (right + wrong) for right, wrong in priors] == pytest.approx([22 / 24, 2 / 24, 0.5, 0.5])
    assert sum(priors[2]) == pytest.approx(PRIOR_SAMPLES), "nothing is known of the other source"
    assert sum(priors[0]) > 2 * PRIOR_SAMPLES, "prompts that were all alike say more of the next"
    numbers = {rates.family(f"source {number}", 8) for number in range(2 * MOST_FAMILIES)}
    assert len(numbers) <= MOST_FAMILIES + 1, "a source a row does not grow without bound"


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
    assert max(teaching.values()) < 2 * float(np.median(list(teaching.values()))), "not the same few again and again"


def test_a_prompt_rests_and_one_that_is_under_way_is_not_drawn_again(mixed: Run) -> None:
    last: dict[int, int] = {}
    rests: list[int] = []
    for number, (row, chosen) in enumerate(zip(mixed.drawn, mixed.chosen, strict=True)):
        if chosen:
            rests.append(number - last[row])
            seen = len(last)
            assert rests[-1] > max(seen // REST, mixed.lag), (number, row)
        last[row] = number
    assert len(rests) > 350


def test_new_prompts_come_in_their_order_and_none_is_forgotten() -> None:
    size = 12
    run = Run(Data([1.0, *[0.5] * (size - 1)]), lag=3).go(4 * FLOOR_EVERY * size)
    order = [row_index(position, size=size, seed=3, shuffle=True)[1] for position in range(len(run.in_order))]
    assert run.in_order == order
    first_seen = list(dict.fromkeys(run.drawn))
    assert first_seen == order[:size], "whatever comes again, new ones come in their order"
    for first in range(0, len(run.drawn), 2 * FLOOR_EVERY * size):
        assert set(run.drawn[first : first + 2 * FLOOR_EVERY * size]) == set(range(size)), "row 0 never has a signal"


def test_a_row_that_is_no_prompt_is_tried_once_and_never_drawn() -> None:
    data = Data([0.5] * 50, unusable=frozenset(range(10)))
    sampler = Difficulty(data, seed=0, n=N)
    chosen = [sampler.choose("50:0", admission=number, version=0) for number in range(1, 200)]
    rows = {int(cursor.split(":")[2]) for cursor in chosen if cursor != "50:0"}
    assert rows == set(range(10, 50))
    assert max(data.tried.values()) == 1


def test_a_draw_asks_as_much_of_a_million_rows_as_of_a_hundred_and_needs_few_bytes() -> None:
    size = 1_000_000
    data = Data([0.5])
    data.rates = range(size)  # type: ignore[assignment]
    sampler = Difficulty(data, seed=0, n=N)
    sampler._rows = counting = Counting(size)  # type: ignore[assignment]
    assert all(sampler.choose(f"{size // 2}:0", admission=number, version=0) for number in range(1, 60))
    assert counting.asked <= 60 * (CANDIDATES + 1)
    arrays = [value for value in [*vars(sampler).values()] if isinstance(value, np.ndarray)]
    for rates in sampler.rates._rates:
        arrays += [rates._right, rates._wrong, rates._version]
    assert sum(array.nbytes for array in arrays) == 61 * size


class Counting:
    """Positions that are rows, counted."""

    def __init__(self, size: int) -> None:
        self.size, self.asked = size, 0

    def place(self, position: int) -> tuple[int, int]:
        self.asked += 1
        return 0, position

    def fits(self, row: int) -> bool:
        return True

    def features(self, row: int) -> tuple[str, int]:
        return "s", 10


def test_a_restarted_coordinator_chooses_what_the_former_one_would_have_chosen(mixed: Run) -> None:
    again = Difficulty(mixed.data, seed=0, n=N)
    rows = [json.loads(json.dumps(row)) for row in mixed.ledger]
    for row in rows:
        again.remember(row)
    for open_group in mixed.open:
        again.reopened(open_group)
    number = len(mixed.drawn)

    def choices(sampler: Difficulty) -> list[str]:
        return [sampler.choose(mixed.cursor, admission=number + ahead, version=40) for ahead in range(100)]

    expected = choices(mixed.sampler)
    assert choices(again) == expected
    assert len(set(expected)) > 10
    strange = [
        rows[0] | {"prompt_row": 1 << 40},
        rows[0] | {"prompt_id": "of other data"},
        rows[0] | {"prompt_epoch": -1},
        {"prompt_id": "p0", "admission": 0},
        rows[0] | {"acc_mean": None, "samples": None, "oldest_version": None},
        rows[0] | {"acc_mean": math.nan},
    ]
    for row in strange:
        again.remember(row)
    assert choices(again) == expected


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
    assert f", drawn again; its chance of a signal was {row['predicted']:.2f}" in page
    assert "chance" not in group_page(row | {"predicted": -1.0}, config=make_config())


def test_a_submitted_prompt_is_not_overtaken_and_its_outcome_is_of_no_row() -> None:
    sampler = Difficulty(Data([0.5] * 20), seed=0, n=N, is_submitted=lambda cursor: cursor.endswith(":0"))
    assert sampler.choose("20:0", admission=1, version=0) == "20:0"
    assert sampler.choose("20:1", admission=1, version=0).count(":") == 2
    submitted = group(0, 3)
    assert submitted.admitted is not None
    submitted.admitted = Admission(time_s=0.0, rank=0, next_step=0, epoch=-1, row=3)
    sampler.ended(submitted)
    sampler.reopened(submitted)
    assert not sampler._open
    assert not sampler._judged


def test_the_cursor_of_a_repeated_prompt_finds_it_again_whatever_was_drawn_since(tmp_path: Path) -> None:
    texts = [f"{number}+1=" for number in range(7)]
    data = stream_of(ListSource(texts), max_prompt_length=10)
    feed = PromptFeed(data=data, files=RunFiles(tmp_path), max_prompt_tokens=10)
    prompt, after = feed.next("9:0:4")
    assert (prompt.text, after, feed.origin("9:0:4", after)) == ("4+1=", "9:0", (1, 4))
    assert feed.next(after)[1] == "10:0", "the order goes on where it was"
    assert data.fits(4)
    assert data.features(4) == ("sums", 4)
    assert data.size == 7
    with pytest.raises(
        DataError, match=r"row 7 was drawn before and is no usable prompt any more \(7 rows\).*put them back"
    ):
        feed.next("9:0:7")
