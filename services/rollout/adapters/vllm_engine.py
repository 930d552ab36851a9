"""vLLM as an engine: vLLM's EngineCore in this process, stepped by the rollout's own loop, on CUDA and CPU alike.

The core is driven directly, without vLLM's front end: token ids go in and come out, the scheduler checks end tokens, and
one token's bookkeeping here is two list appends (measured: 1.2 x the tokens/s of `LLMEngine.step`). Generation pauses
whenever nobody calls `step`, so weights change between two steps without any pause protocol. On CUDA a step is scheduled
while the former one computes; its tokens are taken before weights change, and belong to the version that computed them.
Import this module only after `set_environment`. Tested with vLLM 0.32.
"""

import time
from collections import deque
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch
import vllm
from vllm import EngineArgs, SamplingParams
from vllm.usage.usage_lib import UsageContext
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreEventType, EngineCoreOutput, EngineCoreOutputs, EngineCoreRequest
from vllm.v1.engine import FinishReason as VllmFinishReason
from vllm.v1.engine.core_client import InprocClient
from vllm.v1.executor import Executor

from services.rollout.adapters.engine_environment import device_name
from services.rollout.adapters.vllm_arguments import cpu_arguments, cuda_arguments
from services.rollout.engine import FinishedSample, FinishReason, RunningSample, SampleRequest
from services.rollout.model_files import ModelFacts
from sluice.policy_version import PolicyVersion
from sluice.weights import lending, staging
from sluice.weights.manifest import Manifest

_EXTENSION = "services.rollout.adapters.vllm_extension.SluiceExtension"

_REASONS = {
    VllmFinishReason.STOP: FinishReason.STOP,
    VllmFinishReason.LENGTH: FinishReason.LENGTH,
    VllmFinishReason.ABORT: FinishReason.ABORT,
}


class VllmEngine:
    """See services.rollout.engine.Engine."""

    def __init__(
        self,
        model: ModelFacts,
        *,
        dtype: str,
        max_model_len: int,
        max_num_seqs: int,
        tensor_parallel_size: int,
        gpu_memory_utilization: float,
        enforce_eager: bool,
        kv_cache_bytes: int | None,
        async_scheduling: bool | None = None,
    ) -> None:
        """Loads the model. `gpu_memory_utilization` and `enforce_eager` have an effect on CUDA only.

        With `async_scheduling`, the default on CUDA, vLLM schedules a step while the former step still computes.
        """
        self.name = f"vllm {vllm.__version__} on {device_name()}"
        self.max_model_len = max_model_len
        self.capacity = self.limit = max_num_seqs
        self.version: PolicyVersion | None = None
        self.generated_tokens = 0
        self.kv_use: float | None = 0.0
        self.preemptions = 0
        self._recomputed: set[str] = set()
        """Samples whose KV is computed again because weights changed, which vLLM calls a preemption too."""
        self._running: dict[str, RunningSample] = {}
        self._backlog: deque[SampleRequest] = deque()
        """Requests without room in the core, so that the core's own waiting queue stays short."""
        self._end_token_ids = sorted(model.end_token_ids)
        self._tensor_parallel_size = tensor_parallel_size
        self._ended: dict[str, FinishedSample] = {}
        """Running samples that have ended, by sample_id, until `step` returns them."""
        cuda = torch.cuda.is_available()
        overlaps = cuda if async_scheduling is None else async_scheduling
        resources: dict[str, Any] = (
            cuda_arguments(
                gpu_memory_utilization=gpu_memory_utilization,
                enforce_eager=enforce_eager,
                kv_cache_bytes=kv_cache_bytes,
            )
            if cuda
            else cpu_arguments(max(max_model_len, max_num_seqs), kv_cache_bytes)
        )
        args = EngineArgs(
            model=str(model.path),
            dtype=dtype,  # type: ignore[arg-type]
            max_model_len=max_model_len,
            max_num_seqs=max_num_seqs,
            tensor_parallel_size=tensor_parallel_size,
            worker_extension_cls=_EXTENSION,
            # Log-probabilities of the sampling distribution, not of the unscaled logits.
            logprobs_mode="processed_logprobs",
            # Neutral sampling defaults whatever the model folder recommends.
            generation_config="vllm",
            skip_tokenizer_init=True,
            enable_prefix_caching=True,
            async_scheduling=overlaps,
            disable_log_stats=True,
            **resources,
        )
        # The context in which vLLM chooses the tokens of a step for throughput: 16,384 on a large GPU instead of 2,048.
        config = args.create_engine_config(UsageContext.LLM_CLASS)
        config.scheduler_config.async_scheduling = overlaps  # on a CPU vLLM has switched it off
        # The scheduler's figures come with every step's outputs; nothing is printed.
        self._core = InprocClient(config, Executor.get_class(config), log_stats=True)
        scheduler = self._core.engine_core.scheduler
        assert isinstance(scheduler, Scheduler)
        self._scheduler = scheduler

    @property
    def running(self) -> Mapping[str, RunningSample]:
        return self._running

    @property
    def started(self) -> int:
        return len(self._scheduler.running)

    def add(self, request: SampleRequest) -> None:
        self._running[request.sample_id] = RunningSample(request, self.version)
        self._backlog.append(request)

    def step(self) -> list[FinishedSample]:
        self._scheduler.max_num_active_reqs = self.limit  # samples that were put back keep to it too
        while self._backlog and len(self._running) - len(self._backlog) < self.limit:
            self._core.add_request(self._core_request(self._backlog.popleft()))
        self._take(self._core.get_output())
        ended, self._ended = self._ended, {}
        for sample_id in ended:
            del self._running[sample_id]
        return list(ended.values())

    def abort(self, sample_ids: Collection[str]) -> list[FinishedSample]:
        self._drain()  # what is still computed is of these samples too
        known = {sample_id for sample_id in sample_ids if sample_id in self._running}
        self._backlog = deque(request for request in self._backlog if request.sample_id not in known)
        self._core.abort_requests(list(known - self._ended.keys()))
        self._recomputed -= known
        return [self._end(sample_id) for sample_id in known]

    def load_weights(self, manifest: Manifest, buffer: np.ndarray, *, recompute_kv: bool) -> None:
        self._drain()  # a batch in flight computes with the old weights
        if self._tensor_parallel_size == 1:
            self._core.collective_rpc("sl_load_weights", args=(manifest, buffer))
        else:
            copy = staging.staged(buffer)  # what a receiver fills is staged; other memory is copied once
            place = lending.lend(copy, digest=manifest.digest)
            self._core.collective_rpc("sl_load_borrowed", args=(manifest, place))
        self.version = manifest.version
        for sample in self._running.values():
            sample.switch(manifest.version)
        self._restart_unstarted()
        if recompute_kv:
            self._recomputed |= {request.request_id for request in self._scheduler.running}
            self._core.reset_prefix_cache(reset_running_requests=True)

    def close(self) -> None:
        self._running.clear()
        self._backlog.clear()
        self._ended.clear()
        self._core.shutdown()

    def _take(self, outputs: EngineCoreOutputs) -> None:
        """Books the tokens of one batch. Samples that end go to `_ended`."""
        self._note_cache(outputs)
        for output in outputs.outputs:
            sample = self._running[output.request_id]
            if output.new_token_ids:
                assert output.new_logprobs is not None
                sample.token_ids += output.new_token_ids
                sample.logprobs += output.new_logprobs.logprobs[:, 0].tolist()
                self.generated_tokens += len(output.new_token_ids)
            if output.finish_reason is not None:
                self._recomputed.discard(output.request_id)
                reason = _REASONS.get(output.finish_reason, FinishReason.ERROR)
                self._ended[output.request_id] = sample.finish(reason)

    def _drain(self) -> None:
        """Books the batches in flight and schedules no other; without `async_scheduling` there are none."""
        core = self._core.engine_core
        if not core.batch_queue:
            return
        core.scheduler.set_pause_state(PauseState.PAUSED_ALL)
        try:
            while core.batch_queue:
                self._take(self._core.get_output())
        finally:
            core.scheduler.set_pause_state(PauseState.UNPAUSED)

    def _end(self, sample_id: str) -> FinishedSample:
        """Takes an aborted sample out of the running ones; a sample that has ended by itself has its own reason."""
        sample = self._running.pop(sample_id)
        return self._ended.pop(sample_id, None) or sample.finish(FinishReason.ABORT)

    def _note_cache(self, outputs: EngineCoreOutputs) -> None:
        """Takes the scheduler's figures of one step."""
        if outputs.scheduler_stats is not None:
            self.kv_use = outputs.scheduler_stats.kv_cache_usage
        self.preemptions += sum(self._preemptions_of(output) for output in outputs.outputs)

    def _preemptions_of(self, output: EngineCoreOutput) -> int:
        """How often the sample was put back since its last output, for want of room in the cache."""
        count = sum(event.type == EngineCoreEventType.PREEMPTED for event in output.events or ())
        if count and output.request_id in self._recomputed:
            self._recomputed.discard(output.request_id)
            return count - 1
        return count

    def _restart_unstarted(self) -> None:
        """Gives requests without a token the new version's salt; with the old salt they could hit the old version's cache."""
        backlog = {request.sample_id for request in self._backlog}
        unstarted = [
            sample.request
            for sample_id, sample in self._running.items()
            if not sample.token_ids and sample_id not in backlog and sample_id not in self._ended
        ]
        self._core.abort_requests([request.sample_id for request in unstarted])
        self._backlog.extendleft(reversed(unstarted))

    def _core_request(self, request: SampleRequest) -> EngineCoreRequest:
        return EngineCoreRequest(
            request_id=request.sample_id,
            prompt_token_ids=list(request.prompt_token_ids),
            mm_features=None,
            sampling_params=SamplingParams(
                temperature=request.temperature,
                top_p=request.top_p,
                seed=request.seed,
                max_tokens=request.max_tokens,
                stop_token_ids=self._end_token_ids,
                logprobs=0,  # the sampled token alone
                detokenize=False,
            ),
            pooling_params=None,
            arrival_time=time.time(),
            lora_request=None,
            cache_salt=str(self.version),
            data_parallel_rank=None,
        )
