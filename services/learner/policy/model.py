"""The policy, loaded from a Hugging Face folder and sharded with FSDP2.

Master weights and AdamW's moments are float32; layers compute in `model.dtype`, gradients are summed in float32.
Every rank reads the folder and holds the whole float32 model on the host until it is sharded.
"""

import torch
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from services.learner.distributed.ranks import Ranks
from services.learner.policy import attention, lora
from services.learner.policy.forward import Policy
from services.learner.policy.head import Head
from sluice.config.schema import Config
from sluice.errors import ConfigError

_LOGIT_CHANGES = {"final_logit_softcapping": None, "logit_scale": None, "logits_scaling": 1.0}
"""Settings of models that do more to logits than a head and a temperature, and the value that does nothing."""


def load_policy(config: Config, ranks: Ranks) -> Policy:
    """Version 0: the weights of `model.path`, sharded over all ranks, on their device. Raises ConfigError."""
    disable_progress_bar()
    causal_lm = AutoModelForCausalLM.from_pretrained(
        config.model.path, dtype=torch.float32, attn_implementation=attention.NAME
    )
    _check_head(causal_lm, path=config.model.path)
    lora.attach(causal_lm, config)
    causal_lm.train()
    if config.learner.gradient_checkpointing:
        causal_lm.gradient_checkpointing_enable({"use_reentrant": False})
    head = Head(
        temperature=config.rollout.temperature,
        chunk_tokens=config.learner.logprob_chunk_tokens,
        float32=config.learner.fp32_lm_head,
    )
    return shard(Policy(causal_lm, head), ranks, config=config)


def shard(policy: Policy, ranks: Ranks, *, config: Config) -> Policy:
    """Shards each decoder layer, then the rest (embedding, final norm and head, which may be tied), in place."""
    layers = policy.causal_lm.base_model.layers
    assert isinstance(layers, torch.nn.ModuleList)
    for module in (*layers, policy):
        fully_shard(
            module,
            mesh=ranks.mesh,
            mp_policy=MixedPrecisionPolicy(param_dtype=getattr(torch, config.model.dtype), reduce_dtype=torch.float32),
            # The root's weights are needed again at once, by the head's backward pass.
            reshard_after_forward=None if module is policy else config.learner.reshard_after_forward,
            offload_policy=CPUOffloadPolicy(pin_memory=ranks.device.type == "cuda")
            if config.learner.cpu_offload
            else OffloadPolicy(),
        )
    for module in policy.modules():
        if isinstance(module, FSDPModule):
            # Token weights already hold the global denominator: gradients are summed over ranks, not averaged.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    return policy


def _check_head(causal_lm: PreTrainedModel, *, path: str) -> None:
    """Raises ConfigError when logits are not simply hidden states times the head's weight."""
    head = causal_lm.get_output_embeddings()
    if not isinstance(head, torch.nn.Linear) or head.bias is not None:
        raise ConfigError(f"model.path: {path} must have a linear output head without bias, got {head}")
    for name, neutral in _LOGIT_CHANGES.items():
        value = getattr(causal_lm.config, name, neutral)
        if value not in (None, neutral):
            raise ConfigError(f"model.path: {path} changes its logits ({name}: {value}), which the learner does not do")
