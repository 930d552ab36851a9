"""`sluice rescore`: recorded groups of a run, graded again by other graders."""

import argparse
import importlib.util
import subprocess
from typing import Any

from sluice.errors import LaunchError
from sluice.flags import add_rescore_flags
from sluice.process.child import module_command


def add_parser(commands: Any) -> None:
    """Adds `rescore`."""
    rescore = commands.add_parser(
        "rescore",
        help="grade recorded groups again and show what changes",
        description="Grades the recorded groups of a run again, with the graders of its own configuration as they are now, "
        "or of another one, and shows which verdicts change and of which groups dynamic sampling would have made something "
        "else. Writes nothing into the run, which may be going on or over. Exits 0 when it is done, also when "
        "something differs; 1 when no sample could be graded.",
    )
    add_rescore_flags(rescore)
    rescore.set_defaults(run=_rescore)


def _rescore(args: argparse.Namespace) -> int:
    if missing := [name for name in ("pyarrow", "zstandard") if importlib.util.find_spec(name) is None]:
        raise LaunchError(
            f"rescore: needs {' and '.join(missing)} to read a run; install sluice-rl[coordinator,reward]"
        )
    flags = {"--config": args.config, "--json": args.json}
    argv = [*module_command("services.reward.rescore"), str(args.run_dir)]
    argv += [f"{flag}={value}" for flag, value in flags.items() if value is not None]
    argv += [f"--set={override}" for override in args.overrides]
    return subprocess.run(argv, check=False).returncode
