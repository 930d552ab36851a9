"""The past of a run, written in a hurry: every record as the product's own writers leave it, without anybody who generates.

A step is two scripts in Redis (an assigned batch, its commit), lines of metrics.jsonl, samples.jsonl and sample_tokens.jsonl,
and rows that reach the ledger's files through Redis; evaluations and checkpoints come in between. Left out are the batch files,
which every checkpoint removes, the path from admission to the queue, and the services with their logs: long_run.py has the real
coordinator do these between two stretches of history.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from services.coordinator.state.evaluation_result import EvaluationResult
from services.coordinator.state.group import Admission, Attempt, Group, QueuedGroup, Reward, Sample, Span, group_id_of
from services.coordinator.state.ledger_row import accepted_group, accepted_info, queued_row
from services.coordinator.state.progress import Progress
from services.coordinator.storage.ledger_files import LedgerFiles
from services.coordinator.storage.prompt_places import note_place
from services.coordinator.storage.redis_store import Store
from services.coordinator.storage.run_files import RunFiles
from services.coordinator.wire.messages import ZstdGroups
from sluice.policy_version import PolicyVersion
from sluice.run_dir import checkpoints
from sluice.run_dir.token_figures import SAMPLE_TOKENS_FILE, TokenFigures, line_of
from sluice.telemetry.catalogue import OF_STEPS

LINEAGE = "a"
FLUSH_STEPS = 20
"""As services/coordinator/run/commits.py."""

_NAMES = [metric.name for metric in OF_STEPS if not metric.name.endswith("*")]


@dataclass(frozen=True, kw_only=True, slots=True)
class Pace:
    """The size of a step, and what comes every so many steps."""

    batch: int
    samples: int = 2
    tokens: int = 8
    checkpoint_steps: int = 50
    evaluation_steps: int = 10
    file_max_bytes: int = 1 << 20
    """`run.file_max_bytes`, small, so that the first tenth reaches the size already."""


@contextlib.asynccontextmanager
async def history(run_dir: Path, redis_url: str, pace: Pace) -> AsyncIterator["History"]:
    """Takes over the run, as a coordinator does; the next coordinator takes the run over in turn."""
    store = Store(url=redis_url, run_id=run_dir.name)
    await store.open()
    try:
        files = RunFiles(run_dir, most_bytes=pace.file_max_bytes)
        meta = await store.meta()
        progress = Progress.from_meta(meta, trained_steps=await store.last_step("commit") + 1, version=None)
        yield History(store, files, progress, pace=pace, admissions=int(meta.get("admissions", 0)))
    finally:
        await store.close()


class History:
    """Writes steps behind those that a run has."""

    def __init__(self, store: Store, files: RunFiles, progress: Progress, *, pace: Pace, admissions: int) -> None:
        self._store, self._files, self._progress, self._pace = store, files, progress, pace
        self._ledger = LedgerFiles(store=store, files=files)
        self.admissions = admissions
        """Groups of the run so far."""
        self._group = _one_group(pace)
        codec = ZstdGroups()
        payload = codec.encode(self._group)
        self._accepted = accepted_group(self._group, payload_bytes=len(payload))
        self._to_read, self._payload = codec.to_read(payload), payload
        tokens = sum(len(sample.token_ids) for sample in self._group.samples.values())
        self._figures = TokenFigures(group_id="", log_ratios=np.zeros(tokens), entropies=np.ones(tokens))

    @property
    def steps(self) -> int:
        """Trained steps of the run so far."""
        return self._progress.trained_steps

    async def write(self, until: int, *, tell: Callable[[int], None]) -> None:
        """Goes on to `until` groups; `tell` hears of every checkpoint the number of groups."""
        while self.admissions < until:
            await self._step()
            if self.steps % FLUSH_STEPS == 0:
                await self._ledger.flush()
            if self.steps % self._pace.evaluation_steps == 0:
                await self._evaluate()
            if self.steps % self._pace.checkpoint_steps == 0:
                await self._checkpoint()
                tell(self.admissions)
        await self._checkpoint()

    async def _step(self) -> None:
        step, first = self.steps, self.admissions
        groups = [self._one(first + place) for place in range(self._pace.batch)]
        record = {"ids": [group.group_id for group in groups], "digest": f"{step:064x}"}
        # The facts of a group in the queue are left out: nobody asks for them before the commit.
        parts = [(group.group_id, accepted_info(replace(group, life={})), group.tokens) for group in groups]
        await self._store.restore_batch(step, record=record, groups=parts)
        made = {"lineage": LINEAGE, "weights_digest": f"weights-{step + 1}", "batch_digest": record["digest"]}
        values = {name: float(step % 97) / 97 + place for place, name in enumerate(_NAMES)}
        await self._files.append_metrics({"kind": "step", "step": step, "time_s": time.time(), **made, **values})
        await self._files.append_sample({"step": step, **self._to_read, "group_id": groups[0].group_id})
        tokens = line_of(step, groups[0].group_id, payload=self._payload, figures=self._figures)
        await self._files.append_sample(tokens, name=SAMPLE_TOKENS_FILE)
        await self._store.commit(
            step,
            record={"lineage": LINEAGE, "number": step + 1, "digest": made["weights_digest"]},
            tokens=sum(group.tokens for group in groups),
            rows={group.group_id: queued_row(group, term="trained", step=step) for group in groups},
        )
        self.admissions += self._pace.batch
        self._progress.trained_steps += 1

    def _one(self, admission: int) -> QueuedGroup:
        return replace(
            self._accepted,
            group_id=group_id_of(admission, run_id=self._files.run_dir.name),
            admission=admission,
            prompt_id=f"row-{admission % 17_917}",
            oldest_version=self.steps,
        )

    async def _evaluate(self) -> None:
        version = PolicyVersion(lineage=LINEAGE, number=self.steps)
        scores: dict[str, Any] = {"avg_at_n": 0.5, "pass_at_n": 0.75, "greedy": 0.5}
        size: dict[str, Any] = {"n": 8, "prompts": 100, "mean_response_tokens": 99.5, "wall_s": 12.25}
        result = EvaluationResult(version=version, **scores, **size)
        self._progress.evaluated(result)
        await self._files.append_metrics({"kind": "eval", "time_s": time.time(), "full": False} | result.to_line())

    async def _checkpoint(self) -> None:
        """What Commits.checkpoint does after a learner has written checkpoint K and removed the one before."""
        await self._ledger.flush()
        meta = self._progress.to_meta() | {"cursor": f"{self.admissions}:0", "admissions": str(self.admissions)}
        await self._store.set_meta(meta)
        await asyncio.to_thread(keep_checkpoint, self._files.run_dir, self.steps)
        cursor = f"{self.admissions}:0"
        await asyncio.to_thread(note_place, self._files.run_dir, admissions=self.admissions, cursor=cursor)
        self._files.drop_batches_before(self.steps)
        await self._store.drop_records(self.steps - 1)


def keep_checkpoint(run_dir: Path, step: int) -> Path:
    """Makes the folder of checkpoint `step` the only one, as far as a coordinator looks at it."""
    folder = run_dir / "checkpoints"
    for older in list(checkpoints.steps(folder)):
        path = checkpoints.path_of(folder, older)
        (path / checkpoints.STATE).unlink()
        path.rmdir()
    made = checkpoints.path_of(folder, step)
    made.mkdir(parents=True)
    (made / checkpoints.STATE).write_text(f'{{"lineage": "{LINEAGE}"}}')
    return made


@dataclass(frozen=True, kw_only=True, slots=True)
class _Prompt:
    """A prompt as the mixadd3 task has them."""

    prompt_id: str = "row-0"
    data_source: str = "mixadd3"
    text: str = "12+345+6="
    ground_truth: str = "363"
    extra_info_json: str = ""
    environment: str = ""
    environment_args_json: str = ""
    messages: tuple[()] = ()

    @property
    def token_ids(self) -> np.ndarray:
        """[T] int32."""
        return np.arange(3, 12, dtype=np.int32)


def _one_group(pace: Pace) -> Group:
    """A complete group, of which every group of the history is a copy."""
    random = np.random.default_rng(0)
    group = Group(group_id="group", admission=0, prompt=_Prompt(), cursor="0:0")
    group.admitted = Admission(time_s=time.time(), rank=3, next_step=0, epoch=0, row=0)
    group.attempts = [
        Attempt(
            number=1,
            rollout="rollout-0",
            version=0,
            asked=pace.samples,
            started_s=time.time(),
            ended_s=time.time() + 1.5,
            samples=pace.samples,
            tokens=pace.samples * pace.tokens,
        )
    ]
    version = PolicyVersion(lineage=LINEAGE, number=0)
    for index in range(pace.samples):
        group.samples[index] = Sample(
            index=index,
            token_ids=random.integers(3, 60, pace.tokens, np.int32),
            logprobs=-random.random(pace.tokens, np.float32),
            spans=(Span(version=version, start=0, end=pace.tokens),),
            finish_reason="stop",
            text="#363",
            rollout_id="rollout-0",
            seed=index,
        )
    group.rewards = [_reward(right=index == 0) for index in range(pace.samples)]
    return group


def _reward(*, right: bool) -> Reward:
    return Reward(
        status="ok",
        raw_score=1.0 if right else -1.0,
        acc=float(right),
        extracted="363" if right else "364",
        shaped_reward=1.0 if right else -1.0,
        overlong_penalty=0.0,
        grader="mixadd3",
        grader_version="1",
    )
