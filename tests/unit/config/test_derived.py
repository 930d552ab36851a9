"""The derived numbers against configurations worked out by hand."""

import pytest

from sluice.config.derived import derived_table
from sluice.config.load import load_config

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
