"""The policy, loaded from a Hugging Face folder and sharded with FSDP2.

Master weights and AdamW's moments are float32; layers compute in `model.dtype`, gradients are summed in float32.
Each rank reads its own slices of the files (sharded_loading.py), experts too. Only a folder that transformers has to convert is
loaded whole by every rank, which then holds up to the whole float32 model on the host until it is sharded.
"""

from pathlib import Path

import structlog
import torch
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from services.learner.distributed.context_group import join_context
from services.learner.distributed.ranks import Ranks
from services.learner.policy import attention, lora, sharded_loading
from services.learner.policy.forward import Policy
from services.learner.policy.head import Head
from services.learner.policy.model_config import (
    empty_model,
    load_weights,
    logit_cap,
    logit_factor,
    read_model_config,
)
from services.learner.policy.proof import prove
from services.learner.policy.slice_proof import prove_slices, refuse_shape
from services.learner.policy.stored_model import StoredModel, locate_on_all
from sluice.config.derived import logprob_chunk_tokens
from sluice.config.schema import Config
from sluice.errors import ConfigError
from sluice.weights.adapters import adapters_among

log = structlog.get_logger(__name__)


def load_policy(config: Config, ranks: Ranks) -> Policy:
    """Version 0: the weights of `model.path`, proved and sharded over all ranks, on their device. Collective.

    Raises ConfigError on every rank, for faults of the folder before anything large is read.
    """
    disable_progress_bar()
    path = config.model.path
    model_config = read_model_config(config)
    refuse_shape(config, model_config)
    context = join_context(ranks, size=config.learner.context_parallel_size)
    empty = empty_model(model_config, path=path)
    parameters = sum(parameter.numel() for parameter in empty.parameters())
    stored = locate_on_all(Path(path), empty, ranks)
    head = make_head(config, model_config, device_type=ranks.device.type)
    found = prove(config, model_config, head=head, parameters=parameters, ranks=ranks)
    prove_slices(config, model_config, head=head, forms=found, ranks=ranks, context=context)
    how = None if found.rows else attention.NAME
    whole = _must_be_whole(stored, ranks, parameters=parameters)
    if whole:
        causal_lm = load_weights(path, model_config, attention=how)
    else:
        causal_lm = sharded_loading.build(model_config, path=path, attention=how)
    lora.attach(causal_lm, config)
    _refuse_renamed_adapters(causal_lm, stored)
    if config.learner.gradient_checkpointing:
        causal_lm.gradient_checkpointing_enable({"use_reentrant": False})
    policy = Policy(causal_lm, head, rows=found.rows, shares=found.shares, context=context)
    policy = shard(policy, ranks, config=config)
    if not whole:
        sharded_loading.fill(policy, stored, config=config, ranks=ranks)
    return policy


def _refuse_renamed_adapters(causal_lm: PreTrainedModel, stored: StoredModel) -> None:
    """Raises ConfigError for an adapter of a layer that the files have under another name, by which it would be merged."""
    for weight in adapters_among(lora.plain_name(name) for name, _ in causal_lm.named_parameters()):
        if (sources := stored.tensors.get(weight)) and (name := sources[0].part.name) != weight:
            raise ConfigError(
                f"model.target_modules: must not name {weight.removesuffix('.weight')}, which the files of model.path call "
                f"{name}: adapters are pushed under the names of the files; name other layers, or train without model.lora_rank"
            )


def _must_be_whole(stored: StoredModel, ranks: Ranks, *, parameters: int) -> bool:
    """Whether transformers has to load the model, whole on every rank; the log says why and what it costs. Collective."""
    why = stored.whole_because
    if not why and not sharded_loading.twins_agree(stored, ranks):
        why = "the head, which config.json ties to the embedding, is stored with other values"
    if why and ranks.leads:
        cost = f"every rank holds up to the whole float32 model, {4e-9 * parameters:.1f} GB on the host, until it is sharded"
        log.warning("model_loaded_whole", why=why, cost=cost)
    return bool(why)


def make_head(config: Config, model_config: PreTrainedConfig, *, device_type: str = "cpu") -> Head:
    """The head of a run, with what the model does to its logits."""
    return Head(
        temperature=config.rollout.temperature,
        chunk_tokens=logprob_chunk_tokens(config, device_type=device_type),
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
