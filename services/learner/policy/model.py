"""The policy, loaded from a Hugging Face folder and sharded with FSDP2.

Master weights and AdamW's moments are float32; layers compute in `model.dtype`, gradients are summed in float32.
Every rank reads the folder and holds the whole float32 model on the host until it is sharded.
"""

import torch
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from transformers import PreTrainedConfig
from transformers.utils.logging import disable_progress_bar

from services.learner.distributed.ranks import Ranks
from services.learner.policy import attention, lora
from services.learner.policy.forward import Policy
from services.learner.policy.head import Head
from services.learner.policy.model_config import (
    count_parameters,
    load_weights,
    logit_cap,
    logit_factor,
    read_model_config,
)
from services.learner.policy.proof import prove
from sluice.config.schema import Config


def load_policy(config: Config, ranks: Ranks) -> Policy:
    """Version 0: the weights of `model.path`, proved, then sharded over all ranks, on their device. Raises ConfigError."""
    disable_progress_bar()
    path = config.model.path
    model_config = read_model_config(config)
    parameters = count_parameters(model_config, path=path)
    head = make_head(config, model_config)
    found = prove(config, model_config, head=head, parameters=parameters, ranks=ranks)
    causal_lm = load_weights(path, model_config, attention=None if found.rows else attention.NAME)
    lora.attach(causal_lm, config)
    if config.learner.gradient_checkpointing:
        causal_lm.gradient_checkpointing_enable({"use_reentrant": False})
    return shard(Policy(causal_lm, head, rows=found.rows, shares=found.shares), ranks, config=config)


def make_head(config: Config, model_config: PreTrainedConfig) -> Head:
    """The head of a run, with what the model does to its logits."""
    return Head(
        temperature=config.rollout.temperature,
        chunk_tokens=config.learner.logprob_chunk_tokens,
        float32=config.learner.fp32_lm_head,
        factor=logit_factor(model_config),
        cap=logit_cap(model_config),
    )


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
