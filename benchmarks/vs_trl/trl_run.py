"""One TRL run. Runs inside TRL's environment: python -m benchmarks.vs_trl.trl_run --terms FILE --run DIR ...

GRPOTrainer as it ships, with `loss_type="dapo"` and the shipped soft overlong punishment. TRL has no dynamic sampling.
Batch and update have the recipe's sizes: a generation batch of `groups_per_batch` groups, trained in updates of
`groups_per_update` groups. The clock stands still while weights are saved.
"""

import argparse
import importlib.metadata
import json
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.vs_trl.records import Moment, add_moment, weights_dir
from benchmarks.vs_trl.tasks import TASKS, Row, Task
from benchmarks.vs_trl.terms import Terms, read_terms
from sluice.dapo.overlong import overlong_penalty
from sluice.tasks import mixadd3

RESULT = "trl.json"
_STARTED = time.perf_counter()


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--terms", type=Path, required=True)
    parser.add_argument("--run", type=Path, required=True, help="folder of the run")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    args = parser.parse_args()
    train(read_terms(args.terms), run=args.run, seed=args.seed, threads=args.threads)
    return 0


def train(terms: Terms, *, run: Path, seed: int, threads: int) -> None:
    """Trains and leaves the records of the run; what is left to say goes to RUN/trl.json."""
    import torch
    from datasets import Dataset  # pyright: ignore[reportMissingImports]
    from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback
    from transformers.utils.logging import disable_progress_bar
    from trl import GRPOTrainer  # pyright: ignore[reportMissingImports]
    from trl.rewards import get_soft_overlong_punishment  # pyright: ignore[reportMissingImports]

    disable_progress_bar()
    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(terms.base, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(terms.base)
    task = TASKS[terms.task]
    rows = task.rows(seed=seed, count=terms.batches * terms.groups_per_batch)
    _check_tokens(tokenizer, rows)
    overlong = get_soft_overlong_punishment(terms.max_response_tokens, terms.overlong_buffer_tokens)
    _check_overlong(overlong, terms)
    clock = _Clock()
    accuracy = _AccuracyReward(task, model, tokenizer)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=terms.lr, betas=terms.betas, weight_decay=terms.weight_decay, fused=True
    )
    trainer = GRPOTrainer(
        model=model,
        processing_class=tokenizer,
        reward_funcs=[accuracy, overlong],
        args=_grpo_config(terms, run=run, seed=seed),
        train_dataset=Dataset.from_list([{"prompt": row.prompt, "answer": row.answer} for row in rows]),
        optimizers=(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, terms.lr_factor)),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(_recorder(terms, run, clock, accuracy, trainer))
    trainer.train()
    (run / RESULT).write_text(
        json.dumps(
            {
                "start_up_s": clock.started - _STARTED,
                "versions": {
                    name: importlib.metadata.version(name) for name in ("trl", "transformers", "torch", "accelerate")
                },
                "log": trainer.state.log_history,
            }
        )
    )


def _grpo_config(terms: Terms, *, run: Path, seed: int) -> Any:
    from trl import GRPOConfig  # pyright: ignore[reportMissingImports]

    return GRPOConfig(
        output_dir=str(run / "trainer"),
        use_cpu=True,
        bf16=False,
        seed=seed,
        max_steps=terms.batches * terms.updates_per_batch,
        per_device_train_batch_size=terms.groups_per_update * terms.samples_per_group,
        gradient_accumulation_steps=1,
        steps_per_generation=terms.updates_per_batch,
        num_generations=terms.samples_per_group,
        max_completion_length=terms.max_response_tokens,
        shuffle_dataset=False,
        temperature=terms.temperature,
        loss_type="dapo",
        beta=0.0,
        epsilon=terms.clip_low,
        epsilon_high=terms.clip_high,
        scale_rewards="group",
        mask_truncated_completions=False,
        max_grad_norm=terms.grad_clip,
        gradient_checkpointing=False,
        save_strategy="no",
        report_to="none",
        logging_steps=50,
        disable_tqdm=True,
    )


class _Clock:
    """Wall and CPU seconds of the training, without what happens while it is stopped."""

    started = 0.0

    def start(self) -> None:
        self.started, self._cpu_started = time.perf_counter(), time.process_time()
        self._off = self._cpu_off = 0.0

    def read(self) -> tuple[float, float]:
        """Seconds and CPU-seconds (all threads) so far."""
        return (
            time.perf_counter() - self.started - self._off,
            time.process_time() - self._cpu_started - self._cpu_off,
        )

    def stop_since(self, reading: tuple[float, float]) -> None:
        """Takes out what has passed since `reading`."""
        seconds, cpu_seconds = self.read()
        self._off += seconds - reading[0]
        self._cpu_off += cpu_seconds - reading[1]


class _AccuracyReward:
    """Sluice's grader as a reward function; also counts what TRL generates."""

    __name__ = "accuracy"

    def __init__(self, task: Task, model: Any, tokenizer: Any) -> None:
        ends = model.generation_config.eos_token_id
        self._task = task
        self._ends = {tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])}
        self.completions = self.tokens = 0

    def __call__(
        self, completions: list[Any], completion_ids: list[list[int]], answer: list[str], **_: Any
    ) -> list[float]:
        self.completions += len(completions)
        self.tokens += sum(len(ids) for ids in completion_ids)
        return [
            self._task.reward(
                completion=completion if isinstance(completion, str) else completion[0]["content"],
                answer=right,
                finished=ids[-1] in self._ends,
            )
            for completion, right, ids in zip(completions, answer, completion_ids, strict=True)
        ]


def _recorder(terms: Terms, run: Path, clock: _Clock, counted: _AccuracyReward, trainer: Any) -> Any:
    """The callback that writes a moment after every batch, and weights now and then."""
    from transformers import TrainerCallback

    class Recorder(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            clock.start()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            batches, within = divmod(state.global_step, terms.updates_per_batch)
            if within:
                return
            reading = clock.read()
            add_moment(
                run,
                Moment(
                    batches=batches,
                    seconds=reading[0],
                    cpu_seconds=reading[1],
                    completions=counted.completions,
                    tokens=counted.tokens,
                ),
            )
            if batches % terms.save_every_batches == 0 or state.global_step == state.max_steps:
                trainer.model.save_pretrained(weights_dir(run, batches))
                trainer.processing_class.save_pretrained(weights_dir(run, batches))
                print(f"trl: batch {batches}, {reading[0]:.1f} s, {counted.completions} completions", flush=True)
            clock.stop_since(reading)

    return Recorder()


def _check_tokens(tokenizer: Any, rows: list[Row]) -> None:
    """Texts must be the same tokens on both sides: one a character, nothing added. Chats are rendered by the model's own
    template on both sides."""
    prompts = [row.prompt for row in rows if isinstance(row.prompt, str)]
    if not prompts:
        return
    ids = {token: index for index, token in enumerate(mixadd3.VOCABULARY)}
    for prompt, found in zip(prompts, tokenizer(prompts)["input_ids"], strict=True):
        assert found == [ids[character] for character in prompt], f"{prompt!r} became {found}"
    names = (tokenizer.pad_token, tokenizer.bos_token, tokenizer.eos_token)
    assert names == (mixadd3.PAD, mixadd3.BOS, mixadd3.EOS), names


def _check_overlong(shipped: Any, terms: Terms) -> None:
    """TRL's punishment must be Sluice's at every length."""
    for length in range(1, terms.max_response_tokens + 1):
        ours = overlong_penalty(
            length,
            max_response_length=terms.max_response_tokens,
            buffer_len=terms.overlong_buffer_tokens,
            penalty_factor=1.0,
        )
        (theirs,) = shipped(completion_ids=[[0] * length])
        assert abs(ours - theirs) < 1e-9, f"length {length}: Sluice {ours}, TRL {theirs}"


if __name__ == "__main__":
    sys.exit(main())
