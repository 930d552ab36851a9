"""`python -m services.reward.rescore RUN_DIR`: the program behind `sluice rescore`.

Grades in worker processes like the reward service's, under the same limits; writes nothing into the run. Waits: for the
grading of a sample at most `reward.timeout_s`, after which the worker process is killed.
"""

import argparse
import asyncio
import json
import os
import sys
from pathlib import Path

import structlog

from services.reward.app import make_scorer, open_graders
from services.reward.rescore.recorded_groups import RecordedGroup, batch_steps, not_covered, read_batch
from services.reward.rescore.result_page import as_json, page
from services.reward.rescore.score_comparison import Comparison, Judged, ScoredAgain
from services.reward.routing import Router
from services.reward.sandbox.protections import check_programs
from services.reward.scoring import Scorer
from services.reward.servicer import question_of, samples_of
from sluice.config.load import load_config
from sluice.config.schema import Config
from sluice.errors import ConfigError, NotFound, SluiceError
from sluice.flags import add_rescore_flags
from sluice.rpc.service import exit_code
from sluice.telemetry.logs import configure_logs

log = structlog.get_logger(__name__)


def main(argv: list[str] | None = None) -> int:
    """Rescores; returns 0 when the groups were scored, whatever differs, 1 when they could not be, 2 on bad usage."""
    parser = argparse.ArgumentParser(prog="python -m services.reward.rescore")
    add_rescore_flags(parser)
    args = parser.parse_args(argv)
    configure_logs(service="rescore")
    try:
        _rescore(args)
    except SluiceError as error:
        print(f"sluice: {error}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1
    except ExceptionGroup as failure:  # the pool's tasks raise in a group
        return exit_code(failure)
    except KeyboardInterrupt:
        return 130
    return 0


def _rescore(args: argparse.Namespace) -> None:
    """Scores and prints. Raises SluiceError when no sample at all could be graded: then nothing is known of the graders."""
    run_dir: Path = args.run_dir
    recorded, config = _configs(args)
    router = Router(config.reward.routes, allow_unsandboxed=config.reward.allow_unsandboxed)
    asyncio.run(check_programs(router.must_shut_in))
    steps = batch_steps(run_dir)
    comparison = Comparison(
        filters_before=recorded.algorithm.filter_groups, filters_after=config.algorithm.filter_groups
    )
    asyncio.run(_score_batches(run_dir, steps, config, router, comparison))
    if comparison.nothing_graded:
        why = comparison.changed_samples[0].after.detail if comparison.samples else "the batches hold no group"
        raise SluiceError(f"no sample could be graded, {comparison.samples} were tried: {why}")
    missing = not_covered(run_dir, steps)
    print(page(comparison, run_dir=run_dir, steps=steps, missing=missing))
    if args.json is not None:
        figures = as_json(comparison, run_dir=run_dir, steps=steps, missing=missing)
        args.json.write_text(
            json.dumps(figures, indent=1, allow_nan=False, ensure_ascii=False) + "\n", encoding="utf-8"
        )


def _configs(args: argparse.Namespace) -> tuple[Config, Config]:
    """The run's configuration, and the configuration with the graders to ask."""
    if not args.run_dir.is_dir():
        raise NotFound(f"{args.run_dir}: no such run directory")
    if args.json is not None and not args.json.absolute().parent.is_dir():
        raise ConfigError(f"--json: the folder {args.json.absolute().parent} does not exist")
    path = args.run_dir / "config.yaml"
    if not path.is_file():
        raise ConfigError(f"RUN_DIR: must be the directory of a run, {path} is not a file")
    # The run's own configuration is resolved and holds the environment's settings already.
    environ = {} if args.config is None else os.environ
    return load_config(path), load_config(args.config or path, overrides=args.overrides, environ=environ)


async def _score_batches(
    run_dir: Path, steps: list[int], config: Config, router: Router, comparison: Comparison
) -> None:
    """Scores batch by batch, so that only one batch's texts are in memory."""
    async with open_graders(config, router) as pool:
        scorer = make_scorer(config, pool, router)
        for step in steps:
            groups = await asyncio.to_thread(read_batch, run_dir, step)
            for group in groups:  # a group without a route raises before any grader is asked
                router.parts_of(group.request.data_source)
            room = asyncio.Semaphore(2 * pool.capacity)
            async with asyncio.TaskGroup() as tasks:
                again = [tasks.create_task(_score(group, step, scorer, room)) for group in groups]
            for task in again:
                comparison.add(task.result())
            log.info("batch_rescored", step=step, groups=len(groups))
            if comparison.nothing_graded:  # nothing of a whole batch was graded, so nothing will be
                return


async def _score(group: RecordedGroup, step: int, scorer: Scorer, room: asyncio.Semaphore) -> ScoredAgain:
    request = group.request
    async with room:
        scored = await scorer.score(question=question_of(request), samples=samples_of(request))
    grader = f"{scored.grader} {scored.grader_version}".strip()
    after = [
        Judged(
            status=reward.status,
            raw_score=reward.raw_score,
            acc=reward.acc,
            shaped_reward=reward.shaped_reward,
            extracted=reward.extracted,
            detail=reward.detail,
            grader=grader,
        )
        for reward in scored.rewards
    ]
    return ScoredAgain(
        step=step,
        group_id=request.group_id,
        ground_truth=request.ground_truth,
        samples=[item.index for item in request.items],
        before=group.judged,
        after=after,
    )


if __name__ == "__main__":
    sys.exit(main())
