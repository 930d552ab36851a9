"""One GPU and nine minutes: what of Sluice needs a GPU, measured in one call, without network and without vLLM.

    python -m benchmarks.one_gpu [--device cuda|cpu] [--minutes 9] [--only NAME ...] [--out FILE] [--list]

Every part is a process of its own with a limit of its own: one that crashes, hangs or runs out of memory costs only itself, and
what it had found by then is kept. The parts are forked from this process, which has imported torch and never touches the
device, so that none pays for the imports. The JSON file is written anew after every part. `--device cpu` runs the same code at
the smallest sizes, where the figures mean nothing.

 who waits     for what     unblocked by
 this process  a part       its end, its limit, the end of the minutes: then the part's whole process group is killed
"""

import argparse
import contextlib
import json
import os
import platform
import select
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

os.environ.setdefault(
    "PYTORCH_NVML_BASED_CUDA_CHECK", "1"
)  # otherwise looking for a device spoils it for forked processes
import torch

from benchmarks.gpu_parts import MODEL, PARTS, Part
from benchmarks.gpu_parts.context import Context, Figure, figures_in
from benchmarks.report import RESULTS

TAIL_LINES = 15


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0 when no part failed; 2 for bad usage."""
    args = _arguments(argv)
    if args.list:
        print("\n".join(f"{part.name:<16} {part.limit_s:>4g} s  {part.what}" for part in PARTS))
        return 0
    ends_s = time.monotonic() + 60 * args.minutes
    if args.device == "cuda" and not torch.cuda.is_available():
        print("one_gpu: torch finds no CUDA device; --device cpu runs the same code at its smallest", file=sys.stderr)
        return 2
    chosen = [part for part in PARTS if not args.only or part.name in args.only or part is MODEL]
    done: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="sluice-one-gpu-") as folder:
        context = Context(device=args.device, folder=Path(folder))
        for part in chosen:
            done.append(_one(part, context, left_s=ends_s - time.monotonic()))
            _show(done[-1])
            context = replace(context, ceilings=dict(context.ceilings) | _ceilings(done[-1]))
            _write(args.out, args, done)
    print(f"written to {args.out}")
    return 1 if any(one["state"] in ("failed", "timed out") for one in done) else 0


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.one_gpu", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="default: %(default)s")
    parser.add_argument("--minutes", type=float, default=9.0, help="limit of all parts together (default: %(default)s)")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these parts alone")
    parser.add_argument("--out", type=Path, default=RESULTS / "one_gpu.json", help="default: %(default)s")
    parser.add_argument("--list", action="store_true", help="name the parts and their limits, and end")
    args = parser.parse_args(argv)
    if unknown := set(args.only or ()) - {part.name for part in PARTS}:
        parser.error(
            f"--only: no part is called {', '.join(sorted(unknown))}; there are {', '.join(p.name for p in PARTS)}"
        )
    if not args.minutes > 0:
        parser.error(f"--minutes: must be > 0, got {args.minutes:g}")
    return args


def _one(part: Part, context: Context, *, left_s: float) -> dict[str, Any]:
    """Runs one part, or says why not."""
    why = part.left_out(context.device)
    limit_s = min(part.limit_s, left_s)
    if not why and limit_s < part.least_s:
        why = f"{max(0.0, left_s):.0f} s are left, it needs {part.least_s:g} s"
    if why:
        return {"part": part.name, "state": "left out", "why": why, "seconds": 0.0, "figures": []}
    log, found = context.folder / f"{part.name}.log", context.folder / f"{part.name}.jsonl"
    started = time.monotonic()
    state = _in_a_process(part, context, log, found, limit_s=limit_s)
    tail = log.read_text(errors="replace").splitlines()[-TAIL_LINES:]
    return {
        "part": part.name,
        "state": state,
        "why": "" if state == "done" else next((line for line in reversed(tail) if line.strip()), ""),
        "seconds": round(time.monotonic() - started, 2),
        "figures": [asdict(figure) for figure in figures_in(found)],
        **({} if state == "done" else {"log": tail}),
    }


def _in_a_process(part: Part, context: Context, log: Path, found: Path, *, limit_s: float) -> str:
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        _be(part, context, log, found)
    watched = os.pidfd_open(child)
    try:
        ended, _, _ = select.select([watched], [], [], limit_s)
    finally:
        os.close(watched)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)  # its own children too, and itself where it has not ended
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)  # it may not have a group of its own yet
        _, status = os.waitpid(child, 0)
    if not ended:
        return "timed out"
    return "done" if status == 0 else "failed"


def _be(part: Part, context: Context, log: Path, found: Path) -> None:
    """The part's process, which ends here."""
    code = 1
    try:
        os.setsid()
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(output, 1)
        os.dup2(output, 2)
        if context.small:
            torch.set_num_threads(1)
        with found.open("w") as stream:
            for figure in part.run(context):
                stream.write(json.dumps(asdict(figure)) + "\n")
                stream.flush()
        code = 0
    except BaseException:  # noqa: BLE001 - whatever it is, it is the part's, and its log has it
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _ceilings(result: Mapping[str, Any]) -> dict[str, float]:
    """What later parts compare themselves with."""
    return {f["ceiling"]: f["value"] for f in result["figures"] if f["ceiling"]}


def _show(result: Mapping[str, Any]) -> None:
    print(f"{result['part']:<16} {result['state']:<9} {result['seconds']:6.1f} s  {result['why'][:120]}".rstrip())
    for figure in (Figure(**found) for found in result["figures"]):
        ratio = "" if figure.ratio is None else f"  ({figure.ratio:.3g} of {figure.ratio_of})"
        print(f"    {figure.what:<58} {figure.value:>10.4g} {figure.unit}{ratio}")
    sys.stdout.flush()


def _write(out: Path, args: argparse.Namespace, done: list[dict[str, Any]]) -> None:
    machine = {"system": platform.system(), "cores": os.cpu_count(), "python": platform.python_version()}
    page = {"device": args.device, "minutes": args.minutes, "machine": machine, "parts": done}
    out.parent.mkdir(parents=True, exist_ok=True)
    written = out.with_suffix(".tmp")
    written.write_text(json.dumps(page, indent=2) + "\n")
    written.replace(out)


if __name__ == "__main__":
    sys.exit(main())
