"""`learner`: training."""

from typing import Annotated, Literal

from pydantic import Field

from sluice.config.schema.section import (
    NonNegativeFloat,
    NonNegativeInt,
    PathText,
    PositiveFloat,
    PositiveInt,
    Section,
)

_Beta = Annotated[float, Field(ge=0, lt=1)]


class LearnerConfig(Section):
    """Training."""

    mini_batch_size: PositiveInt | None = Field(
        default=None, description="groups an optimizer update; default data.train_batch_size"
    )
    lr: PositiveFloat = Field(default=1e-6, description="AdamW's learning rate after the warm-up")
    warmup_steps: NonNegativeInt = Field(default=20, description="linear warm-up in steps")
    lr_scheduler_type: Literal["constant", "linear", "cosine"] = Field(
        default="constant", description="learning rate from the warm-up's end to run.total_steps"
    )
    min_lr_ratio: float = Field(default=0.0, ge=0, le=1, description="a decay ends at min_lr_ratio x lr")
    weight_decay: NonNegativeFloat = Field(
        default=0.1, description="AdamW's weight decay, on matrices (no norms, no biases)"
    )
    betas: tuple[_Beta, _Beta] = Field(default=(0.9, 0.999), description="AdamW's betas")
    grad_clip: PositiveFloat = Field(default=1.0, description="largest global gradient norm")
    max_tokens_per_micro_batch: PositiveInt = Field(
        default=32768, description="tokens of a micro-batch on a rank: the knob for memory"
    )
    context_parallel_size: PositiveInt = Field(
        default=1,
        description="ranks that compute a micro-batch together, each a slice of its tokens, so that a micro-batch has room for "
        "so many times max_tokens_per_micro_batch and a longer sequence fits; must divide the ranks and the model's "
        "attention heads (verl's ulysses_sequence_parallel_size)",
    )
    share_prompts: Literal["auto", "never"] = Field(
        default="auto",
        description="auto computes the prompt of a group once for the samples of a micro-batch, where the model allows it "
        "and it saves an eighth of the tokens; never computes it for each sample",
    )
    logprob_chunk_tokens: PositiveInt | None = Field(
        default=None, description="tokens whose logits exist at once; default 1024 on a CPU, 4096 on CUDA"
    )
    gradient_checkpointing: bool = Field(
        default=False, description="compute activations again in the backward pass to save memory"
    )
    fp32_lm_head: bool = Field(default=False, description="multiply hidden states by the head in float32")
    reshard_after_forward: bool = Field(
        default=True,
        description="drop gathered weights after each use and reduce gradients every micro-batch (least memory); false "
        "keeps them and reduces once an update (least traffic)",
    )
    cpu_offload: bool = Field(
        default=False, description="keep shards of weights, gradients and AdamW's state in host memory (CUDA)"
    )
    checkpoint_every_steps: PositiveInt = Field(
        default=20, description="steps between checkpoints; a checkpoint is the commit point of a run"
    )
    keep_checkpoints: PositiveInt = Field(
        default=2,
        description="how many newest checkpoints are kept; batches older than the oldest kept one are removed",
    )
    async_checkpoint: bool = Field(default=True, description="write checkpoints while the next steps train")
    export_every_steps: NonNegativeInt = Field(
        default=0,
        description="steps between Hugging Face folders under RUN/exports/step-K; 0: only RUN/model at the end",
    )
    resume: PathText = Field(default="auto", description="auto | never | path of a checkpoint")
    max_skipped_updates: PositiveInt = Field(default=5, description="non-finite updates in a row before the run stops")
    threads: PositiveInt | None = Field(
        default=None,
        description="CPU threads a rank; default 1, with cpu_offload on CUDA the machine's cores shared out over its ranks",
    )
    peak_flops: NonNegativeFloat = Field(
        default=0.0,
        description="peak FLOP/s of one device, for `learner/mfu`; 0: by the device's name (dense bfloat16), and no figure "
        "for a device that is not known, such as a CPU",
    )
    step_timeout_s: PositiveFloat = Field(
        default=1800.0,
        description="limit of training a step, of gathering its weights and of copying a checkpoint (twice that the first "
        "time); then the rank prints its stacks and ends, and the learner starts again from its checkpoint",
    )
