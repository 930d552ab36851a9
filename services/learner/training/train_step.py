"""One training step: a batch of groups -> several optimizer updates (DAPO, arXiv:2503.14476, algorithm 1, lines 9-11).

The loss has one denominator for the whole mini-batch, over all micro-batches and ranks, so the gradient does not depend on
how the planner cut the mini-batch. The ranks of a context group (distributed/context_group.py) plan as one rank, and each packs
the group's micro-batches and computes its slices of them. An update with a loss or gradient that is not finite on any rank is
skipped on all ranks.
With `proximal: recompute` the step's first weights compute all log-probabilities again before the first update.
A sample of several sequences is one in every mean over sequences and in every ratio of a sequence (whole_samples.py).

Letters: S sequences of the batch, M trained tokens of one micro-batch.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import structlog
import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from services.learner.batches.batch import Batch, advantages, samples_of
from services.learner.batches.step_plan import MiniBatch, plan_step
from services.learner.distributed.ranks import Ranks
from services.learner.policy.forward import Policy
from services.learner.policy.optimizer import learning_rate, take_step
from services.learner.policy.packing import Packed, pack, sliced
from services.learner.training.device_use import DeviceUse
from services.learner.training.example_tokens import ExampleTokens
from services.learner.training.objective import Objective
from services.learner.training.sharing import PromptSharing
from services.learner.training.step_scale import StepScale
from services.learner.training.step_work import Update, Work, shared_prompts, speed
from services.learner.training.tally import Tally
from services.learner.training.whole_samples import WholeSamples, sums_samples
from sluice.config.schema import Config
from sluice.dapo.aggregation import token_weights
from sluice.dapo.mismatch import mismatch
from sluice.errors import SluiceError
from sluice.run_dir.token_figures import TokenFigures

log = structlog.get_logger(__name__)


class Trainer:
    """Policy and optimizer of one rank. `step` counts completed steps and so is the number of the current version."""

    def __init__(
        self,
        *,
        policy: Policy,
        optimizer: torch.optim.Optimizer,
        config: Config,
        ranks: Ranks,
        on_skip: Callable[[Batch], object] = lambda _: None,
    ) -> None:
        """`on_skip` is called, on every rank, with a batch that has an update with a non-finite loss or gradient."""
        self.policy = policy
        self.optimizer = optimizer
        self.step = 0
        self.example: TokenFigures | None = None
        """Of the newest step; the same on every rank."""
        self._config = config
        self._ranks = ranks
        self._context = policy.context
        self._budget_tokens = config.learner.max_tokens_per_micro_batch * policy.context.size
        self._on_skip = on_skip
        self._skipped_in_a_row = 0
        self._use = DeviceUse(policy.causal_lm, config=config, ranks=ranks)
        self._may_share = policy.shares and config.learner.share_prompts == "auto"
        self._sharing = PromptSharing(active=self._may_share, dtype=getattr(torch, config.model.dtype), ranks=ranks)

    def allow_sharing(self, allowed: bool) -> None:
        """Whether the next steps may share prompts where the configuration and the model allow it: a replay knows."""
        self._sharing.active = allowed and self._may_share

    def train(self, batch: Batch) -> dict[str, float]:
        """Trains on batch `step`, all ranks together; returns the metrics of the step, the same on every rank.

        Raises SluiceError when `learner.max_skipped_updates` updates in a row were skipped, or memory ran out.
        """
        assert batch.step == self.step, f"holds version {self.step}, was given batch {batch.step}"
        started = time.perf_counter()
        self._use.begin()
        lr = self._set_learning_rate()
        work = self._work(batch)
        example = ExampleTokens(batch, self._ranks)
        try:
            plan = self._plan(batch, work)
            updates = self._updates(batch, work, plan, example)
        except torch.OutOfMemoryError as error:
            raise SluiceError(
                f"step {self.step}: rank {self._ranks.rank} ran out of device memory; lower "
                f"learner.max_tokens_per_micro_batch (now {self._config.learner.max_tokens_per_micro_batch}), or set "
                "learner.gradient_checkpointing, learner.cpu_offload or, for long sequences, "
                f"learner.context_parallel_size: {error}"
            ) from error
        self.step += 1
        self.example = example.joined()
        elapsed_s = time.perf_counter() - started
        shared = shared_prompts(plan, work)
        use = self._use.metrics(work.trained_lengths, not_computed=shared, elapsed_s=elapsed_s)
        metrics = self._metrics(updates, work) | {"loss/lr": lr, "learner/prompt_tokens_saved": sum(shared)}
        return metrics | speed(work, elapsed_s) | use

    def _set_learning_rate(self) -> float:
        learner = self._config.learner
        lr = learning_rate(
            self.step,
            peak=learner.lr,
            warmup_steps=learner.warmup_steps,
            total_steps=self._config.run.total_steps,
            kind=learner.lr_scheduler_type,
            min_ratio=learner.min_lr_ratio,
        )
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = lr
        return lr

    def _work(self, batch: Batch) -> Work:
        algorithm = self._config.algorithm
        sequences = batch.sequences
        return Work(
            sequences=sequences,
            groups=np.repeat(np.arange(len(batch.groups)), batch.group_sizes).tolist(),
            advantages=advantages(
                batch.groups,
                norm_by_std=algorithm.norm_adv_by_std_in_grpo,
                maxrl=algorithm.adv_estimator == "maxrl",
            ).tolist(),
            trained=[not (algorithm.overlong_filtering and s.truncated) for s in sequences],
            split=any(s.continues for s in sequences) or not all(group.one_prompt for group in batch.groups),
        )

    def _plan(self, batch: Batch, work: Work) -> tuple[MiniBatch, ...]:
        plan = self._cut(batch, work)
        sharing = [s for mini_batch in plan if mini_batch.saved_tokens for s in mini_batch.sequences]
        longest = max((work.sequences[s].input_tokens for s in sharing), default=0)
        if not self._sharing.is_checked(longest):
            self._sharing.settle(longest, *self._in_both_forms(plan, work))
            if not self._sharing.active:
                return self._cut(batch, work)
        return plan

    def _cut(self, batch: Batch, work: Work) -> tuple[MiniBatch, ...]:
        return plan_step(
            group_sizes=batch.group_sizes,
            lengths=[s.input_tokens for s in work.sequences],
            trained=work.trained,
            groups_per_mini_batch=self._config.mini_batch_size,
            ranks=self._context.data_ranks,
            max_tokens=self._budget_tokens,
            rows=self.policy.rows,
            prompts=[s.prompt_tokens for s in work.sequences] if self._sharing.active and not work.split else None,
        )

    def _in_both_forms(self, plan: tuple[MiniBatch, ...], work: Work) -> tuple[Tensor, Tensor]:
        """float32[M] nats of the group with this rank's longest sequence: plain, and with a shared prompt. Collective."""
        mine = [
            s
            for mini_batch in plan
            if mini_batch.saved_tokens
            for micro_batch in mini_batch.micro_batches[self._context.data_rank]
            for s in micro_batch
        ]
        longest = max(mine, key=lambda s: work.sequences[s].input_tokens, default=None)
        members = [s for s in mine if longest is not None and work.groups[s] == work.groups[longest]]
        members.sort(key=lambda s: -work.sequences[s].input_tokens)
        fits = np.cumsum([work.sequences[s].input_tokens for s in members]) <= self._budget_tokens
        members = members[: max(1, int(fits.sum()))]
        ones = dict.fromkeys(members, 1.0)
        forms = [self._pack(members, work, weights=ones, shared=shared) for shared in (False, True)]
        plain, shared = (packed.whole(self.policy(packed, None)[1]) for packed in forms)
        self._fsdp.reshard()  # without a backward pass, which would free the gathered weights
        return plain, shared

    def _updates(self, batch: Batch, work: Work, plan: tuple[MiniBatch, ...], example: ExampleTokens) -> list[Update]:
        proximal = [self._proximal(mini_batch, work) for mini_batch in plan]  # before any weight changes
        updates = []
        for mini_batch, known in zip(plan, proximal, strict=True):
            updates.append(self._update(mini_batch, work, known, example))
            if updates[-1].skipped:
                self._on_skip(batch)
                self._count_skip(updates[-1])
        return updates

    def _proximal(self, mini_batch: MiniBatch, work: Work) -> list[Tensor | None]:
        """float32[M] log-probabilities of each of this rank's micro-batches under the current weights.

        With `proximal: rollout` a None for each micro-batch: the ratio then needs no such log-probabilities.
        """
        if self._config.algorithm.proximal == "rollout":
            return [None] * len(mini_batch.micro_batches[self._context.data_rank])
        scores = [self.policy(packed, None) for packed in self._packed(mini_batch, work)]
        self._fsdp.reshard()  # without a backward pass, which would free the gathered weights
        return [logprobs for _, logprobs, _ in scores]

    def _update(
        self, mini_batch: MiniBatch, work: Work, proximal: list[Tensor | None], example: ExampleTokens
    ) -> Update:
        """Sums the gradient over all micro-batches and ranks, clips the gradient and lets the optimizer take one step."""
        self.optimizer.zero_grad()
        tally, seen = Tally(self._ranks.device), []
        whole = self._whole_samples(mini_batch, work, proximal)
        scale = self._step_scale(mini_batch, work)
        members = mini_batch.micro_batches[self._context.data_rank]
        for index, (packed, known) in enumerate(zip(self._packed(mini_batch, work), proximal, strict=True)):
            self._gather_until_last(last=index == len(proximal) - 1)
            objective = self._objective(packed, known, whole, index)
            figures, entropies = self._accumulate(packed, objective, tally)
            seen.append(figures)
            example.add(members[index], packed, figures[1], entropies)
            if scale is not None:
                scale.add(index, packed, seen[-1][1])
        tally.reduce(self._ranks)
        norm, factor = self._apply(tally, scale) if tally.tokens else (None, 1.0)
        return Update(tally=tally, norm=norm, lr_factor=factor, seen=seen)

    def _step_scale(self, mini_batch: MiniBatch, work: Work) -> StepScale | None:
        """What finds the factor of the update's learning rate, with `algorithm.ess_scaling`."""
        if not self._config.algorithm.ess_scaling:
            return None
        return StepScale(mini_batch, work.sequences, data_rank=self._context.data_rank, ranks=self._ranks)

    def _whole_samples(
        self, mini_batch: MiniBatch, work: Work, proximal: Sequence[Tensor | None]
    ) -> WholeSamples | None:
        """The sums over samples, where the loss needs them and some sample is several sequences. Collective."""
        algorithm = self._config.algorithm
        if not sums_samples(algorithm, [work.sequences[s] for s in mini_batch.sequences]):
            return None
        whole = WholeSamples(mini_batch, work.sequences, data_rank=self._context.data_rank)
        micro_batches = self._packed(mini_batch, work)
        whole.rehearse(micro_batches, proximal, algorithm=algorithm, policy=self.policy, ranks=self._ranks)
        self._fsdp.reshard()  # without a backward pass, which would free the gathered weights
        return whole

    def _objective(self, packed: Packed, proximal: Tensor | None, whole: WholeSamples | None, index: int) -> Objective:
        """The loss of micro-batch `index`."""
        algorithm = self._config.algorithm
        if whole is None:
            return Objective(algorithm, packed, proximal)
        return Objective(algorithm, whole.by_sample(packed, index), proximal, add_up=whole.add_up)

    def _packed(self, mini_batch: MiniBatch, work: Work) -> Iterator[Packed]:
        """This rank's micro-batches on its device, one at a time."""
        weights = self._weights(mini_batch, work)
        for members in mini_batch.micro_batches[self._context.data_rank]:
            yield self._pack(members, work, weights=weights, shared=mini_batch.saved_tokens > 0)

    def _pack(self, members: Sequence[int], work: Work, *, weights: Mapping[int, float], shared: bool) -> Packed:
        packed = pack(
            [work.sequences[s] for s in members],
            step=self.step,
            advantages=[work.advantages[s] for s in members],
            weights=[weights[s] for s in members],
            device=self._ranks.device,
            groups=[work.groups[s] for s in members] if shared else None,
        )
        return sliced(packed, self._context)

    def _gather_until_last(self, *, last: bool) -> None:
        """Without `reshard_after_forward`, weights stay gathered and gradients local up to an update's last micro-batch."""
        if not self._config.learner.reshard_after_forward:
            self._fsdp.set_requires_gradient_sync(last)
            self._fsdp.set_reshard_after_backward(last)
            self._fsdp.set_is_last_backward(last)

    @property
    def _fsdp(self) -> FSDPModule:
        assert isinstance(self.policy, FSDPModule)
        return self.policy

    def _weights(self, mini_batch: MiniBatch, work: Work) -> dict[int, float]:
        """The factor of each token loss, by sequence, with the denominators of the whole mini-batch.

        The sequences of one sample count as one in every aggregation mode.
        """
        algorithm = self._config.algorithm
        of_sample = samples_of([work.sequences[s] for s in mini_batch.sequences])
        trained_tokens = np.zeros(of_sample[-1] + 1, np.int64)
        np.add.at(trained_tokens, of_sample, [work.trained_tokens(s) for s in mini_batch.sequences])
        weights = token_weights(
            trained_tokens,
            mode=algorithm.loss_agg_mode,
            loss_scale_factor=algorithm.loss_scale_factor or self._config.data.max_response_length,
        )
        return dict(zip(mini_batch.sequences, weights[of_sample].tolist(), strict=True))

    def _accumulate(self, packed: Packed, objective: Objective, tally: Tally) -> tuple[Tensor, Tensor]:
        """Forward and backward of one micro-batch.

        Returns float32[3, M]: rollout and learner logprobs, ages; and float32[M]: entropies.
        """
        loss, logprobs, entropies = self.policy(packed, objective)
        loss.backward()
        tally.add(objective.stats(), entropies)
        return torch.stack([packed.rollout_logprobs, logprobs, packed.ages.float()]), entropies

    def _apply(self, tally: Tally, scale: StepScale | None) -> tuple[float, float]:
        """Clips and takes the optimizer's step.

        Returns the norm before clipping, NaN when the update was skipped, and the factor of the learning rate. Loss, norm and
        factor are from sums over ranks, so every rank decides alike.
        """
        gradients = [p.grad for p in self.policy.parameters() if p.grad is not None]
        total = get_total_norm(gradients)
        norm = total.full_tensor() if isinstance(total, DTensor) else total
        if not math.isfinite(tally.loss) or not torch.isfinite(norm):
            return float("nan"), 1.0
        clip_grads_with_norm_(self.policy.parameters(), self._config.learner.grad_clip, norm)
        factor = 1.0 if scale is None else scale.factor()
        take_step(self.optimizer, lr_factor=factor)
        self._skipped_in_a_row = 0
        return float(norm), factor

    def _count_skip(self, update: Update) -> None:
        self._skipped_in_a_row += 1
        log.warning("update_skipped", step=self.step, loss=update.tally.loss, in_a_row=self._skipped_in_a_row)
        if self._skipped_in_a_row >= self._config.learner.max_skipped_updates:
            raise SluiceError(
                f"step {self.step}: {self._skipped_in_a_row} updates in a row (learner.max_skipped_updates) had a loss or "
                f"gradient that is not finite; the last loss is {update.tally.loss}, and nonfinite/ in the run directory "
                "has the batches"
            )

    def _metrics(self, updates: list[Update], work: Work) -> dict[str, float]:
        done = [update for update in updates if not update.skipped and update.norm is not None]
        total = Tally(self._ranks.device)
        for update in done:
            total.merge(update.tally)
        metrics = total.metrics(updates=len(done))
        if done:
            metrics["loss/grad_norm"] = sum(update.norm or 0.0 for update in done) / len(done)
            if self._config.algorithm.ess_scaling:
                metrics["loss/lr_factor"] = sum(update.lr_factor for update in done) / len(done)
        return (
            metrics
            | self._mismatch(updates[0])
            | {
                "learner/updates": len(done),
                "learner/skipped_updates": sum(update.skipped for update in updates),
                "learner/trained_tokens": sum(work.trained_tokens(s) for s in range(len(work.sequences))),
            }
        )

    def _mismatch(self, first: Update) -> dict[str, float]:
        """`mismatch/*` over the first update's tokens, the only tokens with log-probabilities of the step's own version."""
        if first.norm is None or first.skipped:
            return {}
        rollout, learner, ages = self._ranks.join_columns(torch.cat(first.seen, dim=1)).cpu().numpy()
        return mismatch(rollout_logprobs=rollout, learner_logprobs=learner, ages=ages.astype(np.int32))
