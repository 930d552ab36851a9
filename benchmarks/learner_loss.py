"""DAPO loss, log-probabilities and entropy over a large vocabulary: peak memory and time, ours and others', same run.

Hidden states and head weight in, gradients of both out, float32. Every method runs in a process of its own, one after the
other, so that the peak resident memory is its own. What it is compared with:

- naive       log-softmax over all logits at once and autograd, in float32
- TRL         its own log-softmax and entropy over all logits (trl.trainer.utils), where trl can be installed
- Liger       LigerFusedLinearGRPOLoss (loss_type dapo, one sequence a chunk); it has no entropy

TRL has the environment of benchmarks.vs_trl; Liger (with triton, which it imports) is put into a folder of its own. The
naive head does not fit a small machine at 32k tokens: what it would need there is its measurement at 8k times four.
"""

import json
import math
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

VOCABULARY, HIDDEN = 150_000, 256
SEQUENCE = 1024
THREADS = 2
DEFAULT_ENV = Path.home() / ".cache" / "sluice" / "trl-env"
LIGER = ("liger-kernel==0.8.5", "triton==3.9.0")
TARGET_MEMORY, TARGET_TIME = 0.25, 1.0
CLIPS: dict[str, Any] = {"clip_ratio_low": 0.2, "clip_ratio_high": 0.28, "clip_ratio_c": None}
"""Without the dual clip, which Liger's loss has not."""


def run() -> list[Any]:
    """Rows of every method at 8k tokens and of ours at 32k."""
    from benchmarks.report import Row
    from benchmarks.vs_trl import environment

    trl, liger = str(environment.prepare(DEFAULT_ENV)), _liger_folder()
    short, long = 8 * SEQUENCE, 32 * SEQUENCE
    naive = _measure("naive", short)
    rows = _rows("naive log-softmax", short, naive)
    rows += _rows("TRL", short, _measure("trl", short, python=trl))
    rows += _rows("Liger", short, _measure("liger", short, path=liger))
    small_chunks = _measure("sluice-256", short)
    ours, ours_long = (_measure("sluice", tokens) for tokens in (short, long))
    assert all(math.isclose(found["loss"], naive["loss"], rel_tol=1e-4) for found in (ours, small_chunks)), naive
    rows += _rows("Sluice, 256 tokens a chunk", short, small_chunks)
    rows += _rows("Sluice", short, ours) + _rows("Sluice", long, ours_long)
    for tokens, mine in ((short, ours), (long, ours_long)):
        scale = tokens / short
        how = "" if scale == 1 else f" (its {short} tokens x {scale:.0f})"
        memory = mine["peak_bytes"] / (naive["peak_bytes"] * scale)
        elapsed = mine["seconds"] / (naive["seconds"] * scale)
        rows += [
            Row(
                what=f"memory, Sluice / naive{how}, {tokens} tokens", value=memory, unit="",
                target=f"<= {TARGET_MEMORY}", met=memory <= TARGET_MEMORY,
            ),
            Row(
                what=f"time, Sluice / naive{how}, {tokens} tokens", value=elapsed, unit="",
                target=f"<= {TARGET_TIME}", met=elapsed <= TARGET_TIME,
            ),
        ]  # fmt: skip
    return rows


def _rows(label: str, tokens: int, found: dict[str, float]) -> list[Any]:
    from benchmarks.report import Row

    return [
        Row(what=f"{label}, {tokens} tokens x {VOCABULARY}: {what}", value=value, unit=unit, target="", met=True)
        for what, value, unit in (
            ("peak memory", found["peak_bytes"] / 2**30, "GiB"),
            ("time", found["seconds"], "s"),
        )
    ]


def _liger_folder() -> str:
    """Where Liger's packages are, installed beside everything else so that nothing else sees triton."""
    folder = DEFAULT_ENV.parent / "liger"
    if not (folder / "liger_kernel").exists():
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps"]
        subprocess.run([*pip, "--target", str(folder), *LIGER], check=True)
    return str(folder)


def _measure(method: str, tokens: int, *, python: str = sys.executable, path: str = "") -> dict[str, float]:
    command = [python, str(Path(__file__)), method, str(tokens)]
    environment = os.environ | {
        "OMP_NUM_THREADS": str(THREADS),
        "PYTHONPATH": os.pathsep.join(filter(None, (path, str(Path(__file__).parents[1])))),
        "PYTHONWARNINGS": "ignore",
    }
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True, timeout=1800)
    found = json.loads(done.stdout.splitlines()[-1])
    print(f"  {method}, {tokens} tokens: {found}", flush=True)
    return found


def _one(method: str, tokens: int) -> dict[str, float]:
    """Runs one method in this process. Peak memory is what it adds to inputs and libraries."""
    import torch

    torch.set_num_threads(THREADS)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, HIDDEN, generator=generator).requires_grad_()
    weight = (torch.randn(VOCABULARY, HIDDEN, generator=generator) / math.sqrt(HIDDEN)).requires_grad_()
    targets = torch.randint(0, VOCABULARY, (tokens,), generator=generator)
    advantages = torch.randn(tokens // SEQUENCE, generator=generator).repeat_interleave(SEQUENCE)
    behaviour = torch.full((tokens,), -math.log(VOCABULARY)) - 0.5
    step = _METHODS[method](hidden, weight, targets, advantages, behaviour)
    before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    started = time.perf_counter()
    loss = step()
    loss.backward()
    elapsed = time.perf_counter() - started
    assert hidden.grad is not None
    assert weight.grad is not None
    return {
        "seconds": elapsed,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before,
        "loss": loss.item(),
        "gradient": float(hidden.grad.norm()),
    }


def _sluice(
    hidden: Any, weight: Any, targets: Any, advantages: Any, behaviour: Any, chunk_tokens: int | None = None
) -> Callable[[], Any]:
    from services.learner.policy.head import Head
    from sluice.config.derived import LOGPROB_CHUNK_TOKENS
    from sluice.dapo.loss import dapo_token_loss

    def chunk_loss(logprobs: Any, where: slice) -> Any:
        token = dapo_token_loss(
            learner_logprobs=logprobs, proximal_logprobs=behaviour[where], advantages=advantages[where], **CLIPS
        )
        return token.loss.sum() / len(targets)

    head = Head(temperature=1.0, chunk_tokens=chunk_tokens or LOGPROB_CHUNK_TOKENS["cpu"], float32=False)
    return lambda: head.loss(hidden, weight, targets, chunk_loss)[0]


def _naive(hidden: Any, weight: Any, targets: Any, advantages: Any, behaviour: Any) -> Callable[[], Any]:
    import torch

    def step() -> Any:
        logprobs = torch.log_softmax(hidden @ weight.T, -1)
        with torch.no_grad():
            torch.special.entr(logprobs.exp()).sum(-1)
        return _clipped_mean(logprobs.gather(-1, targets[:, None])[:, 0], advantages, behaviour)

    return step


def _trl(hidden: Any, weight: Any, targets: Any, advantages: Any, behaviour: Any) -> Callable[[], Any]:
    import torch
    from trl.trainer.utils import entropy_from_logits, selective_log_softmax

    def step() -> Any:
        logits = (hidden @ weight.T).view(-1, SEQUENCE, VOCABULARY)
        logprobs = selective_log_softmax(logits, targets.view(-1, SEQUENCE)).view(-1)
        with torch.no_grad():
            entropy_from_logits(logits)
        return _clipped_mean(logprobs, advantages, behaviour)

    return step


def _liger(hidden: Any, weight: Any, targets: Any, advantages: Any, behaviour: Any) -> Callable[[], Any]:
    import torch
    from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss

    fused = LigerFusedLinearGRPOLoss(
        beta=0.0, compiled=False, use_ref_model=False, chunk_size=1,
        epsilon_low=0.2, epsilon_high=0.28, loss_type="dapo", temperature=1.0,
    )  # fmt: skip
    rows = len(targets) // SEQUENCE
    return lambda: fused(
        hidden.view(rows, SEQUENCE, HIDDEN),
        weight,
        targets.view(rows, SEQUENCE),
        torch.ones(rows, SEQUENCE),
        advantages.view(rows, SEQUENCE)[:, 0],
        old_per_token_logps=behaviour.view(rows, SEQUENCE),
    )[0]


def _clipped_mean(logprobs: Any, advantages: Any, behaviour: Any) -> Any:
    """DAPO eq. 8 and 12."""
    import torch

    ratio = (logprobs - behaviour).exp()
    return torch.maximum(-advantages * ratio, -advantages * ratio.clamp(0.8, 1.28)).mean()


_METHODS = {
    "sluice": _sluice,
    "sluice-256": partial(_sluice, chunk_tokens=256),
    "naive": _naive,
    "trl": _trl,
    "liger": _liger,
}

if __name__ == "__main__":
    print(json.dumps(_one(sys.argv[1], int(sys.argv[2]))))
