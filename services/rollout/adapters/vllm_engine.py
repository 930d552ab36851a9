"""vLLM as an engine: vLLM's EngineCore in this process, stepped by the rollout's own loop, on CUDA and CPU alike.

The core is driven directly, without vLLM's front end: token ids go in and come out, the scheduler checks end tokens, and
one token's bookkeeping here is two list appends (measured: 1.2 x the tokens/s of `LLMEngine.step`). Generation pauses
whenever nobody calls `step`, so weights change between two steps without any pause protocol.
Import this module only after `set_environment`. Tested with vLLM 0.32.
"""

import tempfile
import time
from collections import deque
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import vllm
from vllm import EngineArgs, SamplingParams
from vllm.usage.usage_lib import UsageContext
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreEventType, EngineCoreOutput, EngineCoreOutputs, EngineCoreRequest
from vllm.v1.engine import FinishReason as VllmFinishReason
from vllm.v1.engine.core_client import InprocClient
from vllm.v1.executor import Executor

from services.rollout.adapters.environment import device_name
from services.rollout.engine import FinishedSample, FinishReason, RunningSample, SampleRequest
from services.rollout.model_files import ModelFacts
from sluice.policy_version import PolicyVersion
from sluice.weights import files
from sluice.weights.manifest import Manifest
from sluice.weights.snapshot import Snapshot

_EXTENSION = "services.rollout.adapters.vllm_extension.SluiceExtension"

_REASONS = {
    VllmFinishReason.STOP: FinishReason.STOP,
    VllmFinishReason.LENGTH: FinishReason.LENGTH,
    VllmFinishReason.ABORT: FinishReason.ABORT,
}

_CPU_BLOCK_TOKENS = 32
"""KV block length on a CPU; vLLM's default of 128 on a CPU wastes most of a block on short sequences."""

_CPU_STEP_TOKENS = 2048
"""Prompt tokens of one step on a CPU, vLLM's default; more where a single prompt or one token a row needs more."""


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
    ) -> None:
        """Loads the model. `kv_cache_bytes` has an effect on a CPU only, `gpu_memory_utilization` and `enforce_eager` on
        CUDA only."""
        self.name = f"vllm {vllm.__version__} on {device_name()}"
        self.max_model_len = max_model_len
        self.capacity = max_num_seqs
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
        resources: dict[str, Any] = (
            {
                "gpu_memory_utilization": gpu_memory_utilization,
                "enforce_eager": enforce_eager,
                # The other kernels keep experts in an order of their own, into which new weights cannot be loaded.
                "moe_backend": "triton",
            }
            if torch.cuda.is_available()
            else _cpu_arguments(max(max_model_len, max_num_seqs), kv_cache_bytes)
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
            # One batch in flight, so that between two steps no batch is running.
            async_scheduling=False,
            disable_log_stats=True,
            **resources,
        )
        config = args.create_engine_config(UsageContext.ENGINE_CONTEXT)
        # The scheduler's figures come with every step's outputs; nothing is printed.
        self._core = InprocClient(config, Executor.get_class(config), log_stats=True)

    @property
    def running(self) -> Mapping[str, RunningSample]:
        return self._running

    def add(self, request: SampleRequest) -> None:
        self._running[request.sample_id] = RunningSample(request, self.version)
        self._backlog.append(request)

    def step(self) -> list[FinishedSample]:
        finished: list[FinishedSample] = []
        while self._backlog and len(self._running) - len(self._backlog) < self.capacity:
            self._core.add_request(self._core_request(self._backlog.popleft()))
        outputs = self._core.get_output()
        self._note_cache(outputs)
        for output in outputs.outputs:
            sample = self._running[output.request_id]
            if output.new_token_ids:
                assert output.new_logprobs is not None
                sample.token_ids += output.new_token_ids
                sample.logprobs += output.new_logprobs.logprobs[:, 0].tolist()
                self.generated_tokens += len(output.new_token_ids)
            if output.finish_reason is not None:
                del self._running[output.request_id]
                self._recomputed.discard(output.request_id)
                finished.append(sample.finish(_REASONS.get(output.finish_reason, FinishReason.ERROR)))
        return finished

    def abort(self, sample_ids: Collection[str]) -> list[FinishedSample]:
        known = {sample_id for sample_id in sample_ids if sample_id in self._running}
        self._backlog = deque(request for request in self._backlog if request.sample_id not in known)
        self._core.abort_requests(list(known))
        self._recomputed -= known
        return [self._running.pop(sample_id).finish(FinishReason.ABORT) for sample_id in known]

    def load_weights(self, manifest: Manifest, buffer: np.ndarray, *, recompute_kv: bool) -> None:
        if self._tensor_parallel_size == 1:
            self._core.collective_rpc("sl_load_weights", args=(manifest, buffer))
        else:
            with tempfile.TemporaryDirectory(prefix="sluice-", dir="/dev/shm") as directory:
                path = files.write_snapshot(Path(directory), Snapshot(manifest=manifest, buffer=buffer.view()))
                self._core.collective_rpc("sl_load_file", args=(str(path),))
        self.version = manifest.version
        for sample in self._running.values():
            sample.switch(manifest.version)
        self._restart_unstarted()
        if recompute_kv:
            scheduler = self._core.engine_core.scheduler
            assert isinstance(scheduler, Scheduler)
            self._recomputed |= {request.request_id for request in scheduler.running}
            self._core.reset_prefix_cache(reset_running_requests=True)

    def close(self) -> None:
        self._running.clear()
        self._backlog.clear()
        self._core.shutdown()

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
            if not sample.token_ids and sample_id not in backlog
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


def _cpu_arguments(needed_step_tokens: int, kv_cache_bytes: int | None) -> dict[str, Any]:
    """Engine arguments for a CPU."""
    return {
        "enforce_eager": True,
        "block_size": _CPU_BLOCK_TOKENS,
        "kv_cache_memory_bytes": kv_cache_bytes,
        # After a partial prefill vLLM rewinds a seeded request's generator, and a CPU generator raises on a rewind.
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(_CPU_STEP_TOKENS, needed_step_tokens),
    }
