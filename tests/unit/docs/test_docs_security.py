"""The page on security says what the code does."""

import re

from scripts import access_table
from sluice.limits import MAX_CALLS_AT_ONCE, MAX_REQUEST_BYTES, MAX_STREAMS_A_CONNECTION
from sluice.rpc.gate import REASONS, RECEIVE_S, SEND_S


def text() -> str:
    return access_table.PAGE.read_text(encoding="utf-8")


def test_the_table_of_who_may_call_what_is_what_the_script_writes() -> None:
    assert text() == access_table.page(text())


def test_every_reason_for_a_refusal_has_its_metric_on_the_page() -> None:
    assert set(re.findall(r"`sluice_rpc_refused_(\w+)_total`", text())) == set(REASONS)


def test_the_limits_on_the_page_are_those_of_the_code() -> None:
    sizes = {name.rpartition(".")[2]: limit >> 20 for name, limit in MAX_REQUEST_BYTES.items()}
    assert sizes == {
        "CoordinatorService": 64,
        "RolloutService": 64,
        "RewardService": 256,
        "LearnerService": 1,
        "EnvironmentService": 16,
        "WeightService": 1,
    }
    assert "over 1 MiB (learner), 64 MiB (coordinator, rollout), 16 MiB (environments), 256 MiB (reward)" in text()
    assert f"over {RECEIVE_S:.0f} s to arrive, a caller that reads nothing for {SEND_S:.0f} s" in text()
    assert f"more than {MAX_CALLS_AT_ONCE} calls at once, {MAX_STREAMS_A_CONNECTION} on a connection" in text()
