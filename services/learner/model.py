"""The policy and its optimizer, loaded from a Hugging Face folder and sharded with FSDP2.

Master weights and AdamW's moments are float32; layers compute in `model.dtype`, gradients are summed in float32.
Every rank reads the folder and holds the whole float32 model on the host until it is sharded.
"""

import torch
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from transformers import AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

from services.learner import attention
from services.learner.forward import Policy
from services.learner.ranks import Ranks
from sluice.config.schema import Config


def load_policy(config: Config, ranks: Ranks) -> Policy:
    """Version 0: the weights of `model.path`, sharded over all ranks, on their device."""
    disable_progress_bar()
    causal_lm = AutoModelForCausalLM.from_pretrained(
        config.model.path, dtype=torch.float32, attn_implementation=attention.NAME
    )
    causal_lm.train()
    if config.learner.gradient_checkpointing:
        causal_lm.gradient_checkpointing_enable({"use_reentrant": False})
    policy = Policy(
        causal_lm,
        temperature=config.rollout.temperature,
        chunk_tokens=config.learner.logprob_chunk_tokens,
    )
    return shard(policy, ranks, dtype=getattr(torch, config.model.dtype))


def shard(policy: Policy, ranks: Ranks, *, dtype: torch.dtype) -> Policy:
    """Shards each decoder layer, then the rest (embedding, final norm and head, which may be tied), in place."""
    precision = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    layers = policy.causal_lm.base_model.layers
    assert isinstance(layers, torch.nn.ModuleList)
    for layer in layers:
        fully_shard(layer, mesh=ranks.mesh, mp_policy=precision)
    fully_shard(policy, mesh=ranks.mesh, mp_policy=precision)
    for module in policy.modules():
        if isinstance(module, FSDPModule):
            # Token weights already hold the global denominator: gradients are summed over ranks, not averaged.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    return policy


def make_optimizer(policy: Policy, config: Config) -> torch.optim.AdamW:
    """AdamW over all parameters; its learning rate is set at every step."""
    learner = config.learner
    return torch.optim.AdamW(
        policy.parameters(), lr=learner.lr, betas=learner.betas, weight_decay=learner.weight_decay, fused=True
    )


def learning_rate(step: int, *, peak: float, warmup_steps: int) -> float:
    """Constant after a linear warm-up counted in steps: step 0 trains at peak / warmup_steps."""
    return peak * min(1.0, (step + 1) / max(1, warmup_steps))
