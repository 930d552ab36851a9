"""A small run directory, written with the coordinator's own code: one group of every kind of end."""

import asyncio
from pathlib import Path

from services.coordinator.state.group import Admission, Attempt, Group, QueuedGroup, Reward, Sample, Span
from services.coordinator.state.ledger_row import ledger_row, queued_row
from services.coordinator.storage.run_files import RunFiles
from services.coordinator.wire.messages import ZstdGroups
from sluice.config.load import dump_config
from sluice.policy_version import PolicyVersion
from tests.unit.coordinator.fakes import FakePrompt, make_config, make_reward, make_sample

ADMITTED_S = 1_700_000_000.0


def make_group(admission: int, *accs: float, tokens: int = 4, status: str = "ok") -> Group:
    """A group whose one attempt gave a sample for every accuracy; without any it was never started."""
    prompt = FakePrompt(prompt_id=f"p{admission}", data_source="sums", text=f"{admission}+1=")
    samples = {index: make_sample(index, tokens=tokens) for index in range(len(accs))}
    attempt = Attempt(
        number=1,
        rollout="rollout-0",
        version=0,
        asked=len(accs),
        started_s=ADMITTED_S,
        ended_s=ADMITTED_S + 0.5,
        samples=len(accs),
        tokens=tokens * len(accs),
    )
    return Group(
        group_id=f"run-{admission:07d}",
        admission=admission,
        prompt=prompt,
        cursor="",
        samples=samples,
        rewards=[make_reward(acc, status=status) for acc in accs],
        admitted=Admission(time_s=ADMITTED_S, rank=admission, next_step=0, epoch=0, row=40 + admission),
        attempts=[attempt] if accs else [],
    )


def two_attempts(group: Group) -> Group:
    """Its first rollout died after one sample, which was too old for the second."""
    first = Attempt(number=1, rollout="rollout-9", version=0, asked=2, started_s=ADMITTED_S, samples=1, tokens=5)
    first.ended_s, first.fault = ADMITTED_S + 1, "rollout-9: connection reset"
    group.attempts[0].number, group.attempts[0].version = 2, 2
    group.attempts.insert(0, first)
    group.attempt, group.lost_tokens = 2, 5
    versions = [PolicyVersion(lineage="a", number=number) for number in (2, 3)]
    spans = (Span(version=versions[0], start=0, end=1), Span(version=versions[1], start=1, end=4))
    group.samples[1] = _with(group.samples[1], spans=spans)
    group.samples[0] = _with(group.samples[0], spans=(Span(version=versions[0], start=0, end=4),))
    group.rewards[0] = Reward(
        status="ok",
        raw_score=1.0,
        acc=1.0,
        extracted="42",
        shaped_reward=0.75,
        overlong_penalty=-0.25,
        grader="fake",
        grader_version="1",
        parts={"brevity": 0.25, "right": 1.0},
    )
    return group


def accepted(group: Group) -> QueuedGroup:
    """As the conductor accepts it."""
    oldest = group.oldest_version
    assert oldest is not None
    return QueuedGroup(
        group_id=group.group_id,
        admission=group.admission,
        oldest_version=oldest,
        tokens=group.response_tokens,
        payload_bytes=1,
        prompt_id=group.prompt.prompt_id,
        attempt=group.attempt,
        shaped_mean=0.5,
        life=ledger_row(group, term="queued", ended=False),
    )


def failed(group: Group) -> Group:
    """One whose grader was killed."""
    group.fault = "the grader ran longer than 5 s"
    return group


def write_run(folder: Path) -> Path:
    """Seven groups: two trained (the batch of step 3 is kept, that of step 2 is not), one of each other end."""
    run_dir = folder / "run"
    files = RunFiles(run_dir)
    kept, gone = two_attempts(make_group(0, 1.0, 0.0)), make_group(1, 1.0, 0.0)
    rows = [
        queued_row(accepted(kept), term="trained", step=3),
        queued_row(accepted(gone), term="trained", step=2),
        queued_row(accepted(make_group(2, 1.0, 0.0)), term="stale", step=-1),
        ledger_row(make_group(3, 1.0, 1.0), term="filtered_all_right"),
        ledger_row(make_group(4, 0.0, 0.0), term="filtered_all_wrong"),
        ledger_row(failed(make_group(5, 0.0, 0.0, status="timeout")), term="failed:reward_timeout"),
        ledger_row(make_group(6), term="abandoned"),
    ]

    async def write() -> None:
        await files.write_ledger(rows[:4], after=0, most=4)
        await files.write_ledger(rows[4:], after=4, most=4)
        batch = await files.stage_batch(3, payloads=[ZstdGroups().encode(kept)])
        await files.name_batch(3, batch.digest)

    asyncio.run(write())
    (run_dir / "config.yaml").write_text(dump_config(make_config()), encoding="utf-8")
    return run_dir


def _with(sample: Sample, *, spans: tuple[Span, ...]) -> Sample:
    return Sample(
        index=sample.index,
        token_ids=sample.token_ids,
        logprobs=sample.logprobs,
        spans=spans,
        finish_reason="length" if len(spans) > 1 else "stop",
        text=f"completion of sample {sample.index}",
        rollout_id="rollout-0",
        seed=0,
    )
