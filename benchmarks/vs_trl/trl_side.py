"""Starts a TRL run in TRL's environment and waits for it."""

import json
import os
import subprocess
from pathlib import Path

from benchmarks.vs_trl.terms import Terms, write_terms
from benchmarks.vs_trl.trl_run import RESULT

_RUN_LIMIT_S = 3600.0
_ROOT = Path(__file__).parents[2]


def trl_run(terms: Terms, *, python: Path, run: Path, seed: int, threads: int) -> dict[str, object]:
    """Trains and leaves the records of the run; returns what there is to say about it.

    Raises RuntimeError with the end of the log when it fails.
    """
    write_terms(terms, run / "terms.json")
    command = [str(python), "-W", "ignore", "-m", "benchmarks.vs_trl.trl_run", "--terms", str(run / "terms.json")]
    command += ["--run", str(run), "--seed", str(seed), "--threads", str(threads)]
    environ = os.environ | {
        "PYTHONPATH": str(_ROOT),
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
    }
    log = run / "trl.log"
    with log.open("w") as stderr:
        code = subprocess.run(command, env=environ, cwd=_ROOT, stderr=stderr, timeout=_RUN_LIMIT_S).returncode
    if code:
        tail = "\n".join(log.read_text().splitlines()[-15:])
        raise RuntimeError(f"TRL ended with code {code}; {log} ends:\n{tail}")
    return json.loads((run / RESULT).read_text()) | {"seed": seed, "threads": threads}
