"""The derived numbers against configurations worked out by hand."""

import pytest

from sluice.config.derived import derived_table, most_queued_bytes
from sluice.config.load import load_config
from sluice.errors import ConfigError

BASE = ["model.path=m", "data.train_files=[a.jsonl]"]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (  # the DAPO script: 512 prompts x 16 in 16 updates; at K = 1 no more than 2 x 512 groups can be in time
            ["learner.mini_batch_size=32", "data.gen_batch_size=1536", "learner.warmup_steps=10"],
            {
                "sequences per step": "8,192",
                "sequences per optimizer update": "512",
                "optimizer updates per step": "16",
                "longest sequence, tokens": "22,528",
                "groups in flight at most": "1,024",
                "tokens in flight at most": f"{1024 * 16 * 22528:,}",
                "maximum age, steps": "1",
                "maximum age, optimizer updates": "31",
                "warm-up, optimizer updates": "160",
            },
        ),
        (  # synchronous: over-generation is the cap, and only a step's own earlier updates are behind
            ["coordinator.max_staleness=0", "data.gen_batch_size=1536", "learner.mini_batch_size=32"],
            {"groups in flight at most": "1,536", "maximum age, steps": "0", "maximum age, optimizer updates": "15"},
        ),
        (  # refills ahead of the verdicts: the cap alone
            ["data.gen_batch_size=1536", "coordinator.refill_confidence=0.5"],
            {"groups in flight at most": "1,536", "maximum age, steps": "1"},
        ),
        (  # fully on-policy
            ["coordinator.max_staleness=0"],
            {"optimizer updates per step": "1", "maximum age, optimizer updates": "0"},
        ),
        (  # the CPU demo's shape
            [
                *("data.train_batch_size=32", "rollout.n=8", "learner.mini_batch_size=16", "run.total_steps=60"),
                *("data.max_prompt_length=8", "data.max_response_length=72"),
            ],
            {
                "sequences per step": "256",
                "groups in flight at most": "32",
                "tokens in flight at most": "20,480",
                "maximum age, optimizer updates": "3",
                "optimizer updates of the run": "120",
                "sequences of the run": "15,360",
            },
        ),
        (  # a remainder is an update of its own
            ["data.train_batch_size=10", "learner.mini_batch_size=4"],
            {"optimizer updates per step": "3"},
        ),
    ],
)
def test_the_table_holds_the_numbers_worked_by_hand(overrides: list[str], expected: dict[str, str]) -> None:
    table = {name: value for name, value, _ in derived_table(load_config(None, overrides=[*BASE, *overrides]))}
    assert {name: table[name] for name in expected} == expected


def test_every_number_says_how_it_follows() -> None:
    table = derived_table(load_config(None, overrides=BASE))
    assert all(how for _, _, how in table)
    assert len({name for name, _, _ in table}) == len(table)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], 2 * 512 * 16 * 20480 * 10),  # K = 1: two batches may be alive
        (["coordinator.max_staleness=0", "data.gen_batch_size=600"], 600 * 16 * 20480 * 10),
        (["data.gen_batch_size=600", "coordinator.refill_confidence=0.9"], (2 * 512 + 600) * 16 * 20480 * 10),
        (
            ["coordinator.max_staleness=9"],
            (4 << 30) + 512 * 16 * 20480 * 10,
        ),  # ten batches are more than the queue takes
    ],
)
def test_the_queue_comes_to_what_may_be_alive_or_to_its_limit_and_what_is_in_flight(
    overrides: list[str], expected: int
) -> None:
    assert most_queued_bytes(load_config(None, overrides=[*BASE, *overrides])) == expected


def test_a_queue_smaller_than_a_batch_and_a_group_larger_than_a_message_are_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"coordinator\.queue_max_bytes: must hold at least .* 1677721600 bytes, got 1000"
    ):
        load_config(None, overrides=[*BASE, "coordinator.queue_max_bytes=1000"])
    with pytest.raises(
        ConfigError, match=r"data\.max_response_length: 16 samples .* of 2500000 tokens make a group of 320000000"
    ):
        load_config(
            None, overrides=[*BASE, "data.max_response_length=2500000", "coordinator.queue_max_bytes=999999999999"]
        )
