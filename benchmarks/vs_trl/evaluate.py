"""Reads the accuracy of saved weights, the same way for both sides, off the clock.

python -m benchmarks.vs_trl.evaluate RUN SPLIT ...: every folder of RUN/weights that has no reading yet. The task `demo` is read
by plain transformers on one thread, with the same random draws for all weights, so that two are compared on equal luck. The
task `sums` is read by `sluice evaluate`, on its file of held-out rows whatever the split, and its weights are removed then:
each folder has half a gigabyte.

Letters: R rows going on, V vocabulary.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from benchmarks.vs_trl.records import Accuracy, accuracies, add_accuracy, saved_batches, weights_dir
from benchmarks.vs_trl.tasks import TASKS, Demo, Sums
from sluice.cli.demo_llm import RECIPE
from sluice.cli.up import find_recipe
from sluice.tasks import mixadd3, sums
from sluice.tasks.splits import Split

_SUMS_PROMPTS = 64
"""A minute of one thread for each folder; the standard error of avg@4 is then about .04."""


def evaluate_run(run: Path, *, task: str, split: Split, prompts: int, max_response_tokens: int) -> None:
    """Reads all weights of a run that were not read on this split yet; a line each."""
    done = accuracies(run, split)
    if task == Sums.name:
        for batches in saved_batches(run):
            if batches not in done:
                _keep(run, split, Accuracy(batches=batches, **_by_sluice(weights_dir(run, batches))))
                _remove(weights_dir(run, batches))
        return
    texts = [mixadd3.prompt_at(seed=0, index=index, split=split) for index in range(prompts)]
    for batches in saved_batches(run):
        if batches not in done:
            avg, greedy = accuracy(
                weights_dir(run, batches), texts, samples=Demo.samples, max_response_tokens=max_response_tokens
            )
            _keep(run, split, Accuracy(batches=batches, avg=avg, greedy=greedy))


def _keep(run: Path, split: str, read: Accuracy) -> None:
    add_accuracy(run, split, read)
    print(f"{run.name}: batch {read.batches}, {split}: avg {read.avg:.3f}, greedy {read.greedy:.3f}", flush=True)


def _by_sluice(weights: Path) -> dict[str, float]:
    """`avg` and `greedy` of a folder, by the recipe's grader. Raises CalledProcessError."""
    with tempfile.TemporaryDirectory(prefix="vs-trl-evaluation-") as folder:
        data, found = Path(folder) / "held_out.jsonl", Path(folder) / "found.json"
        data.write_text(sums.json_lines("held_out"))
        recipe = find_recipe(RECIPE)
        command = [sys.executable, "-m", "sluice.cli.main", "evaluate", "--model", str(weights), "-c", str(recipe)]
        command += ["--data", str(data), "--prompts", str(_SUMS_PROMPTS)]
        command += ["-n", str(Sums.samples), "--json", str(found)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        (read,) = json.loads(found.read_text())["evaluations"]
    return {"avg": read["avg"], "greedy": read["greedy"]}


def _remove(weights: Path) -> None:
    """The base model is a link."""
    if weights.is_symlink():
        weights.unlink()
    else:
        shutil.rmtree(weights)


def accuracy(folder: Path, prompts: Sequence[str], *, samples: int, max_response_tokens: int) -> tuple[float, float]:
    """Mean accuracy of `samples` completions a prompt at temperature 1, and of one greedy completion a prompt."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    limit = max_response_tokens
    sampled = _right(model, [prompt for prompt in prompts for _ in range(samples)], limit, greedy=False)
    best = _right(model, prompts, limit, greedy=True)
    return sampled / (len(prompts) * samples), best / len(prompts)


def _right(model: Any, prompts: Sequence[str], limit: int, *, greedy: bool) -> float:
    """Sum of rewards of one completion for each prompt; prompts of one length share a batch, without padding."""
    import torch

    draws = torch.Generator().manual_seed(0)
    total = 0.0
    for _, group in groupby(sorted(prompts, key=len), key=len):
        same_length = list(group)
        for prompt, ids in zip(same_length, _complete(model, same_length, limit, draws, greedy=greedy), strict=True):
            total += TASKS[Demo.name].reward(
                completion="".join(mixadd3.VOCABULARY[token] for token in ids if token != _EOS),
                answer=mixadd3.answer(prompt),
                finished=ids[-1] == _EOS,
            )
    return total


def _complete(model: Any, prompts: Sequence[str], limit: int, draws: Any, *, greedy: bool) -> list[list[int]]:
    """Token ids of completions, end token included; finished rows leave the batch."""
    import torch
    from transformers import DynamicCache

    completions: list[list[int]] = [[] for _ in prompts]
    going_on = torch.arange(len(prompts))
    ids = torch.tensor([[_ID_OF[character] for character in prompt] for prompt in prompts])
    cache: Any = DynamicCache(config=model.config)
    with torch.inference_mode():
        for _ in range(limit):
            logits = model(input_ids=ids, past_key_values=cache, logits_to_keep=1).logits[:, -1]  # [R, V]
            # Every row of the start draws, finished or not: a row's luck does not depend on the others.
            noise = torch.rand(len(prompts), logits.shape[1], generator=draws)[going_on]
            # argmax(logit + Gumbel noise) is a draw from the softmax.
            chosen = (logits if greedy else logits - torch.log(-torch.log(noise))).argmax(-1)
            for row, token in zip(going_on.tolist(), chosen.tolist(), strict=True):
                completions[row].append(token)
            alive = (chosen != _EOS).nonzero().flatten()
            if len(alive) == 0:
                break
            going_on = going_on[alive]
            cache.batch_select_indices(alive)
            ids = chosen[alive, None]
    return completions


_ID_OF = {token: index for index, token in enumerate(mixadd3.VOCABULARY)}
_EOS = _ID_OF[mixadd3.EOS]


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="folder of a run")
    parser.add_argument("splits", nargs="+", choices=mixadd3.SPLITS)
    parser.add_argument("--prompts", type=int, default=256)
    parser.add_argument("--task", choices=TASKS, required=True)
    parser.add_argument("--max-response-tokens", type=int, required=True)
    args = parser.parse_args()
    for split in args.splits:
        evaluate_run(
            args.run,
            task=args.task,
            split=split,
            prompts=args.prompts,
            max_response_tokens=args.max_response_tokens,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
