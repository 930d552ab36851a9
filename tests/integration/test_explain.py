"""`sluice ledger` and `sluice explain`: asked of a coordinator while a run goes on, of a restarted one, and of its files."""

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import structlog

from sluice.cli.main import main
from sluice.launch.embedded_redis import EmbeddedRedis
from sluice.v1 import coordinator_pb2 as pb
from tests.integration.coordinator_cases import Cast, coordinator, small_config
from tests.otlp_lines import spans_of

pytestmark = pytest.mark.integration

TERMS = {"trained", "filtered_all_wrong", "abandoned"}
"""How groups end here."""


@pytest.fixture
async def cast(model: Path) -> AsyncIterator[Cast]:
    """Silent: their logs, and the coordinator's, are on this process's standard output too."""
    with structlog.testing.capture_logs():
        async with Cast(model).standing() as made:
            yield made


async def test_the_life_of_a_group_is_the_same_live_after_a_restart_and_in_the_files(
    model: Path,
    cast: Cast,
    tmp_path: Path,
    redis_server: EmbeddedRedis,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run_dir = tmp_path / "run"

    async def sluice(*words: str, fails: bool = False) -> str:
        assert await asyncio.to_thread(main, words) == int(fails)
        printed = capsys.readouterr()
        return printed.err if fails else printed.out

    def serve(**changes: Any) -> Any:
        return coordinator(small_config(model, telemetry__traces="file", **changes), run_dir, redis_server.url)

    async with serve() as run:
        await run.stub.SubmitPrompts(
            pb.SubmitPromptsRequest(prompts=[pb.UserPrompt(data_source="mine", prompt="1+1=", ground_truth="2")]),
            timeout=5,
        )
        await cast.register(run)
        await cast.learner.train(run, range(1))
        await run.until(lambda status: status.ledger.queued >= 4)
        here = ("--coordinator", run.address)
        trained = await sluice("explain", "run-0000001", *here)
        assert "group run-0000001: trained in step 0" in trained
        assert "mixadd3, row 0 of the data, epoch 0" in trained
        assert "rollout-0 at version 0" in trained
        assert re.search(
            r"  took      graded .* s, queued .* s, in its batch .* s\n  trace     [0-9a-f]{32}\n", trained
        )
        assert "2 of 2 samples, 6 tokens" in trained
        assert "a0:1-3" in trained
        assert "its oldest token is of version 0, age 0 of at most 1 steps" in trained
        assert "mine, number 0 of those submitted by users" in await sluice("explain", "0", *here)
        with_text = await sluice("explain", "0", "--text", *here)
        assert "prompt text\n  1+1=\ncompletion 0\n  right\ncompletion 1\n  wrong" in with_text
        dropped = await sluice("explain", "4", *here)
        assert "group run-0000004: filtered all wrong" in dropped
        assert "verdict: dropped, every sample is wrong" in dropped
        queued = (await run.stub.ListGroups(pb.ListGroupsRequest(state="queued"), timeout=5)).groups[0].group_id
        assert f"group {queued}: queued" in await sluice("explain", queued, *here)
        error = await sluice("explain", "run-9999999", *here, fails=True)
        assert "group 'run-9999999': must be one of the" in error
        book = await sluice("ledger", *here)
        assert "closed: both sides agree" in book
        assert ["trained", "4", "24"] in [line.split() for line in book.splitlines()]
        config = (await run.stub.GetConfig(pb.GetConfigRequest(), timeout=5)).yaml
    async with serve() as run:
        here = ("--coordinator", run.address)
        assert await sluice("explain", "run-0000001", *here) == trained, "its row still waits in Redis"
        await cast.register(run)
        await cast.learner.train(run, range(3))
        await cast.learner.batch(run, 3)
        ended = await run.until(lambda status: status.state == pb.RUN_STATE_FINISHED)
        assert ended.ledger.closed
    async with serve() as run:
        assert await sluice("explain", "run-0000001", "--coordinator", run.address) == trained, "now it is in a file"
        assert "closed" in await sluice("ledger", "--coordinator", run.address)
    (run_dir / "config.yaml").write_text(config, encoding="utf-8")
    on_disk = ("--run-dir", str(run_dir))
    assert await sluice("explain", "run-0000001", *on_disk) == trained
    assert await sluice("explain", "4", *on_disk) == dropped
    assert "completion 0\n  right" in await sluice("explain", "1", "--text", *on_disk)
    book = await sluice("ledger", *on_disk)
    assert "closed: both sides agree" in book
    _the_traces_are_those_of_the_ledger(run_dir)
    totals = book.splitlines()[1].split()[-2:]
    assert totals == [str(ended.ledger.admitted), str(ended.ledger.generated_tokens)]


def _the_traces_are_those_of_the_ledger(run_dir: Path) -> None:
    """One trace a group, over three coordinators, made of what was kept."""
    spans = spans_of(run_dir / "traces" / "coordinator.jsonl")
    roots = {span.attributes["sluice.group.id"]: span for span in spans if span.name == "sluice.group"}
    rows = pq.read_table(run_dir / "ledger").to_pylist()
    assert {row["group_id"]: row["trace_id"] for row in rows} == {name: root.trace_id for name, root in roots.items()}
    assert {root.attributes["sluice.group.term"] for root in roots.values()} <= TERMS
    assert len({root.trace_id for root in roots.values()}) == len(roots)
    known = {(span.trace_id, span.span_id) for span in spans}
    assert all((span.trace_id, span.parent_id) in known for span in spans if span.parent_id)
    for row in (row for row in rows if row["term"] == "trained"):
        below = [span for span in spans if span.trace_id == row["trace_id"] and span.parent_id]
        names = {span.name for span in below}
        assert names == {"sluice.admission", "rl.sample", "rl.reward", "sluice.queue", "sluice.batch"}
        root = roots[row["group_id"]]
        assert root.start_ns <= min(span.start_ns for span in below)
        assert all(span.start_ns <= span.end_ns <= root.end_ns for span in below)
        assert [event["name"] for event in root.events][-1:] == ["sluice.verdict"]
    pushes = [span for span in spans if span.name == "rl.sync"]
    assert {span.attributes["sluice.policy.version"] for span in pushes} >= {0, 1}
