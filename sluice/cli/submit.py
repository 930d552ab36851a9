"""`sluice submit`: hands a recipe to the queue of a cluster, where `sluice up` runs it."""

import argparse
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sluice.launch.submit.choice import NAMES

_LOOK_EVERY_S = 2.0
_SETTLES_S = 120.0
"""Between the last line of a job and its end in the queue's books."""


def add_parser(commands: Any) -> None:
    """Adds `submit`."""
    submit = commands.add_parser(
        "submit",
        help="hand a recipe to a cluster's queue",
        description="Hands a recipe to Ray's jobs, Slurm or Kubernetes. `sluice status`, `logs` and `stop` then take "
        "--job with the id that is printed.",
    )
    submit.add_argument("-c", "--config", type=Path, required=True, help="recipe (YAML)")
    submit.add_argument("--on", choices=NAMES, required=True, help="whose queue")
    submit.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="override")
    submit.add_argument(
        "--run-dir", type=Path, metavar="DIR", help="run directory, as the cluster sees it; an existing one is resumed"
    )
    submit.add_argument("--template", type=Path, metavar="FILE", help="your own text around the run, in place of ours")
    submit.add_argument(
        "--dry-run", action="store_true", help="check the recipe, print what would be handed in, and end"
    )
    submit.add_argument(
        "--wait", action="store_true", help="follow the log; exit as the run does, as far as its queue knows"
    )
    submit.set_defaults(run=run_submit)


def run_submit(args: argparse.Namespace) -> int:
    """Hands the recipe in, or with --dry-run prints the files."""
    from sluice.cli.submissions import Submitted, remember
    from sluice.launch.submit.choice import submitter_of

    submission, submitter = _submission(args), submitter_of(args.on)
    files = submitter.render(submission)
    if args.dry_run:
        return _show(submission, files)
    job = submitter.submit(submission)
    credentials = submission.config.network.credentials
    folder = "" if credentials is None else str(Path(credentials).resolve() / "operator")
    submitted = Submitted(
        on=args.on, job=job, name=submission.name, run_dir=str(submission.run_dir), credentials=folder
    )
    print(f"submitted {submitted.label}, run directory {submission.run_dir}", flush=True)
    remember(submitted)
    if args.wait:
        return _wait(submitter, job, label=submitted.label)
    print(f"  sluice status --job {submitted.label}\n  sluice logs -f --job {submitted.label}")
    print(f"  sluice stop --job {submitted.label}")
    return 0


def _submission(args: argparse.Namespace) -> Any:
    """The recipe, checked as `sluice up` checks a recipe before anything starts, and what the queues need to know."""
    from sluice.cli.config import load_runnable
    from sluice.launch.submit.port import Submission
    from sluice.run_dir.naming import new_run_dir

    overrides = [*_from_environment(os.environ), *args.overrides]
    # In pods the learner's machines meet at the control pod, which has no name yet; the schema asks for an address.
    meeting = ["launch.learner_rdzv_endpoint=control:29400"] if args.on == "kubernetes" else []
    placing = [] if args.on == "kubernetes" else [f"launch.engine={args.on}"]  # as `sluice up --on` there
    config = load_runnable(args.config, overrides=[*meeting, *overrides, *placing])
    run_dir = args.run_dir or new_run_dir(config)
    if args.on == "kubernetes":
        from sluice.launch.submit.kubernetes_text import RUNS

        run_dir = args.run_dir or RUNS / run_dir.name
    else:
        run_dir = run_dir.resolve()
    return Submission(
        name=re.sub(r"[^A-Za-z0-9]+", "-", run_dir.name).strip("-") or "run",
        recipe=args.config.resolve(),
        overrides=overrides,
        config=config,
        run_dir=run_dir,
        template=args.template,
    )


def _from_environment(environ: Mapping[str, str]) -> Iterator[str]:
    """The keys that this shell sets, as overrides: the cluster's shell does not have them."""
    from sluice.config.load import ENVIRONMENT_PREFIX

    for name, text in sorted(environ.items()):
        if name.startswith(ENVIRONMENT_PREFIX):
            yield f"{name.removeprefix(ENVIRONMENT_PREFIX).lower().replace('__', '.')}={text}"


def _show(submission: Any, files: Mapping[str, str]) -> int:
    """Prints the files, each under its name, and has the recipe checked as far as this machine has what it names.

    What the check says goes to stderr, so that the files alone can be piped on.
    """
    import contextlib

    from sluice.cli.up import check_here

    for name, text in files.items():
        print(f"# ===== {name} =====\n{text.rstrip()}\n", flush=True)
    with contextlib.redirect_stdout(sys.stderr):
        return check_here(submission.config)


def _wait(submitter: Any, job: str, *, label: str) -> int:
    """Prints the run's lines until the job has ended; returns the exit code. Ctrl-C leaves the job where it is."""
    from sluice.errors import Unavailable
    from sluice.launch.submit.port import JobState
    from sluice.process import exit_codes
    from sluice.report.figures import printable

    codes = {JobState.FINISHED: 0, JobState.FAILED: 1, JobState.STOPPED: exit_codes.INTERRUPTED}
    try:
        for line in submitter.logs(job, follow=True):
            print(printable(line), flush=True)
        give_up_s = time.monotonic() + _SETTLES_S
        while (state := submitter.state(job)) not in codes:
            if time.monotonic() > give_up_s:
                raise Unavailable(
                    f"{label}: its log has ended and its queue says {state}", fix="ask again: sluice status"
                )
            time.sleep(_LOOK_EVERY_S)
    except KeyboardInterrupt:
        print(f"\nsluice: {label} goes on; `sluice stop --job {label}` ends it", file=sys.stderr)
        return exit_codes.INTERRUPTED
    print(f"sluice: {label} is {state}", file=sys.stderr)
    return codes[state]
