"""The one schema of a run. Strict: unknown keys and impossible values are refused before anything heavy is imported.

Names are those verl's users know; units stand in names. `sluice.config.load` reads files into it.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from sluice.addresses import is_loopback
from sluice.config.exact_dapo import departures
from sluice.config.redis_url import password_problem
from sluice.limits import MAX_CALLS_PER_S, MAX_MESSAGE_BYTES

PositiveInt = Annotated[int, Field(gt=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]

PAYLOAD_BYTES_A_TOKEN = 10
"""Id, log-probability and text under zstd. Measured: 8.5 with ids as frequent as words (Zipf), 9.9 with uniform ones."""


class Section(BaseModel):
    """Base of every part: frozen, no unknown keys, defaults validated too."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


class RunConfig(Section):
    """Identity and length of a run."""

    name: str = Field(default="run", pattern=r"^[A-Za-z0-9._-]+$", description="first part of the run directory's name")
    dir: str = Field(default="runs", description="where run directories are made")
    seed: NonNegativeInt = Field(
        default=0, description="the one seed: prompt order, sampling and training derive from it"
    )
    total_steps: PositiveInt = Field(default=100, description="steps to train; one step is one batch")
    loggers: list[Literal["tensorboard", "wandb", "mlflow"]] = Field(
        default_factory=list,
        description="who gets the lines of metrics.jsonl beside it; each is a package and an extra of that name "
        "(docs/monitoring.md)",
    )


class ModelConfig(Section):
    """The policy."""

    path: str = Field(description="a Hugging Face model folder with tokenizer")
    dtype: Literal["float32", "bfloat16"] = Field(
        default="bfloat16", description="type of the weights pushed to rollouts"
    )
    lora_rank: NonNegativeInt = Field(
        default=0, description="rank of trained LoRA adapters (arXiv:2106.09685); 0 trains every weight"
    )
    lora_alpha: PositiveFloat = Field(default=16.0, description="adapters are scaled by lora_alpha / lora_rank")
    target_modules: Literal["all-linear"] | list[str] = Field(
        default="all-linear", description="layers that get an adapter: all linear ones but the head, or their names"
    )


class DataConfig(Section):
    """Prompts."""

    train_files: list[str] = Field(
        min_length=1, description=".jsonl or .parquet files, `reasoning-gym:TASK` or `mixadd3:train`"
    )
    val_files: list[str] = Field(default_factory=list, description="held-out prompts for evaluation, same forms")
    train_batch_size: PositiveInt = Field(default=512, description="groups (prompts) a step")
    gen_batch_size: PositiveInt | None = Field(
        default=None,
        description="first wave and cap of groups in flight while a batch is unfilled; default train_batch_size",
    )
    max_prompt_length: PositiveInt = Field(
        default=2048, description="longest prompt in tokens; longer ones are skipped"
    )
    max_response_length: PositiveInt = Field(
        default=20480, description="longest completion in tokens, end token included"
    )
    shuffle: bool = Field(default=True, description="permute each epoch (a pure function of seed and epoch)")
    template: Literal["model", "none"] = Field(
        default="model", description="the model's chat template, or the text as it is"
    )


class RolloutConfig(Section):
    """Generation."""

    n: PositiveInt = Field(default=16, description="samples a group")
    temperature: PositiveFloat = Field(default=1.0, description="sampling temperature of training")
    engine: Literal["vllm", "transformers"] = Field(default="vllm", description="inference engine")
    tensor_parallel_size: PositiveInt = Field(default=1, description="devices one vLLM engine is spread over")
    max_num_seqs: PositiveInt = Field(default=256, description="samples an engine runs at once")
    gpu_memory_utilization: float = Field(default=0.85, gt=0, le=1, description="CUDA only")
    enforce_eager: bool = Field(default=False, description="run the model without CUDA graphs; a CPU has none")
    kv_cache_bytes: PositiveInt | None = Field(default=128 << 20, description="KV cache of a CPU engine in bytes")
    threads: PositiveInt = Field(default=1, description="OMP threads of a CPU engine")
    step_timeout_s: PositiveFloat = Field(
        default=120.0,
        description="limit of one engine step or change of weights; a rollout that takes longer hangs: it ends and is "
        "started again",
    )


class FilterGroupsConfig(Section):
    """Dynamic sampling (DAPO eq. 11)."""

    enable: bool = Field(
        default=True, description="drop groups whose samples all score the same; false trains every group"
    )
    metric: Literal["acc", "score", "seq_reward", "seq_final_reward"] = Field(
        default="acc",
        description="what has to vary within a group: accuracy, raw score, or shaped reward (the two `seq_`)",
    )
    max_num_gen_batches: int = Field(
        default=0, description="generation batches without a full batch before the run stops; <= 0: never"
    )
    on_starvation: Literal["stop", "wait", "train_partial"] = Field(
        default="stop",
        description="what happens after max_num_gen_batches: the run stops, warns and goes on, or trains the groups that it "
        "has (a smaller batch is not exact DAPO)",
    )


class RolloutCorrectionConfig(Section):
    """What is done about tokens that another policy sampled, beyond the ratio's clip; verl's names."""

    rollout_is: Literal["none", "token", "sequence"] = Field(
        default="none",
        description="truncated importance weight proximal / rollout, by token or sequence (TIS); needs proximal: recompute",
    )
    rollout_is_threshold: PositiveFloat = Field(default=2.0, description="largest importance weight")
    rollout_rs: Literal["none", "token", "sequence", "geometric"] = Field(
        default="none",
        description="what is masked when its ratio to the rollout leaves the bounds: the token (IcePop), or its whole "
        "sequence by the product or the geometric mean of its ratios (MIS)",
    )
    rollout_rs_threshold: float = Field(default=2.0, ge=1, description="upper bound of that ratio")
    rollout_rs_threshold_lower: float | None = Field(
        default=None, gt=0, le=1, description="lower bound; default 1 / rollout_rs_threshold"
    )


class AlgorithmConfig(Section):
    """DAPO."""

    loss_mode: Literal["vanilla", "gspo", "cispo"] = Field(
        default="vanilla",
        description="vanilla: DAPO's clipped token ratio; gspo: one ratio a sequence (arXiv:2507.18071); cispo: clipped "
        "ratio as a constant weight (arXiv:2506.13585)",
    )
    proximal: Literal["rollout", "recompute"] = Field(
        default="rollout",
        description="denominator of the ratio: what the rollout sampled with, or the step's first weights asked again "
        "(decoupled PPO, arXiv:2110.00641)",
    )
    rollout_correction: RolloutCorrectionConfig = RolloutCorrectionConfig()

    clip_ratio_low: float = Field(default=0.2, ge=0, lt=1, description="eps_low of eq. 10")
    clip_ratio_high: NonNegativeFloat = Field(default=0.28, description="eps_high of eq. 10 (clip-higher)")
    clip_ratio_c: float | None = Field(
        default=10.0, gt=1, description="dual clip for negative advantages; null switches it off"
    )
    loss_agg_mode: Literal["token-mean", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm"] = (
        Field(default="token-mean", description="how token losses become one loss (eq. 12); DAPO's is token-mean")
    )
    loss_scale_factor: PositiveFloat | None = Field(
        default=None, description="divisor of seq-mean-token-sum-norm; default data.max_response_length"
    )
    norm_adv_by_std_in_grpo: bool = Field(default=True, description="divide advantages by the group's std (eq. 9)")
    filter_groups: FilterGroupsConfig = FilterGroupsConfig()
    min_group_size: int = Field(
        default=0,
        ge=0,
        description="train a group of which at least so many samples could be graded, without the others; 0: a group with a "
        "sample that could not be graded is dropped (a smaller group is not exact DAPO)",
    )
    overlong_filtering: bool = Field(default=False, description="mask truncated samples in the loss")
    use_kl_loss: Literal[False] = Field(default=False, description="DAPO has no KL term; anything else is refused")
    use_kl_in_reward: Literal[False] = Field(default=False, description="DAPO has no KL term; anything else is refused")
    kl_loss_coef: Literal[0] = Field(default=0, description="DAPO has no KL term; anything else is refused")


class OverlongBufferConfig(Section):
    """Soft overlong punishment (DAPO eq. 13)."""

    enable: bool = Field(default=False, description="punish completions that come near max_response_length")
    len: PositiveInt = Field(default=4096, description="tokens before max_response_length in which the penalty grows")
    penalty_factor: NonNegativeFloat = Field(
        default=1.0, description="punishment at max_response_length, subtracted from the raw score"
    )


class GraderConfig(Section):
    """One grader of a route."""

    grader: str = Field(min_length=1, description="built-in grader, module, `file.py:function` or `module:function`")
    settings: dict[str, Any] = Field(default_factory=dict, description="the grader's own settings")
    weight: float = Field(default=1.0, description="factor of its score in the sum")
    name: str = Field(default="", description="what its score is called in metrics; default: the grader")
    network: bool = Field(default=False, description="whether it may use the network; `judge` always may")


def _as_graders(route: Any) -> Any:
    """A route's short forms, a name or one section, as the list that they stand for."""
    graders = route if isinstance(route, list) else [route]
    return [{"grader": grader} if isinstance(grader, str) else grader for grader in graders]


GraderList = Annotated[list[GraderConfig], BeforeValidator(_as_graders), Field(min_length=1)]


class RewardConfig(Section):
    """Grading."""

    overlong_buffer: OverlongBufferConfig = OverlongBufferConfig()
    workers: PositiveInt = Field(default=2, description="grader processes of one reward service")
    timeout_s: PositiveFloat = Field(
        default=10.0, description="wall-clock limit of one grading; then the worker is killed"
    )
    max_answer_chars: PositiveInt = Field(
        default=400_000, description="a longer completion is not graded: its status is `error`, not a zero"
    )
    worker_memory_bytes: PositiveInt = Field(default=2 << 30, description="address-space limit of a grader process")
    worker_file_bytes: PositiveInt = Field(
        default=256 << 20, description="largest file that a grader process can write"
    )
    worker_max_processes: int = Field(
        default=256, ge=16, description="processes and threads of a grader, where the machine permits the limit"
    )
    recycle_after: PositiveInt = Field(default=10_000, description="gradings after which a grader process is replaced")
    warn_ungraded_fraction: float = Field(
        default=0.02,
        gt=0,
        le=1,
        description="share of the last 1000 samples, timeouts or errors, from which the log warns",
    )
    routes: dict[str, GraderList] = Field(
        default_factory=dict,
        description="data_source (or a prefix ending in *) -> grader, or {grader, settings, weight, name}, or a list of "
        "those, whose first decides what is right; before the built-in table (docs/rewards.md)",
    )


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
    weight_decay: NonNegativeFloat = Field(default=0.1, description="AdamW's, on matrices only (no norms, no biases)")
    betas: tuple[float, float] = Field(default=(0.9, 0.999), description="AdamW's")
    grad_clip: PositiveFloat = Field(default=1.0, description="largest global gradient norm")
    max_tokens_per_micro_batch: PositiveInt = Field(default=32768, description="the one memory knob, per rank")
    logprob_chunk_tokens: PositiveInt = Field(default=1024, description="tokens whose logits exist at once")
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
        default=2, description="newest checkpoints kept; batches older than the oldest one are removed"
    )
    async_checkpoint: bool = Field(default=True, description="write checkpoints while the next steps train")
    export_every_steps: NonNegativeInt = Field(
        default=0,
        description="steps between Hugging Face folders under RUN/exports/step-K; 0: only RUN/model at the end",
    )
    resume: str = Field(default="auto", description="auto | never | path of a checkpoint")
    max_skipped_updates: PositiveInt = Field(default=5, description="non-finite updates in a row before the run stops")
    threads: PositiveInt = Field(default=1, description="OMP threads a rank on a CPU")
    step_timeout_s: PositiveFloat = Field(
        default=1800.0,
        description="limit of training a step, of gathering its weights and of copying a checkpoint (twice that the first "
        "time); then the rank prints its stacks and ends, and the learner starts again from its checkpoint",
    )


class CoordinatorConfig(Section):
    """Conducting."""

    max_staleness: NonNegativeInt = Field(
        default=1, description="largest age in steps of any trained token; 0 is synchronous"
    )
    straggler_deadline_s: PositiveFloat = Field(
        default=60.0, description="how long a batch waits for groups that would expire"
    )
    heartbeat_interval_s: PositiveFloat = Field(default=1.0, description="how often a service says that it is alive")
    heartbeat_timeout_s: PositiveFloat = Field(default=10.0, description="silence after which a service is lost")
    generate_timeout_s: PositiveFloat = Field(default=600.0, description="limit of one generation call")
    score_timeout_s: PositiveFloat = Field(default=120.0, description="limit of one scoring call")
    score_wait_s: PositiveFloat = Field(
        default=600.0,
        description="how long a group waits while graders push back (a full queue, a judge that is away), before it counts as "
        "failed; such tries are not among coordinator.max_attempts",
    )
    max_attempts: PositiveInt = Field(default=3, description="tries a group gets before it counts as failed")
    no_service_timeout_s: PositiveFloat = Field(
        default=300.0, description="longest time without any usable rollout or reward"
    )
    stall_warning_s: PositiveFloat = Field(
        default=60.0,
        description="time without a group that starts or ends and without a step before the log says who waits for whom; "
        "at least twice the last step's",
    )
    queue_max_bytes: PositiveInt = Field(
        default=4 << 30,
        description="accepted payloads kept in Redis; then only groups of the next batch are admitted",
    )


class WeightsConfig(Section):
    """Weight push."""

    backend: Literal["auto", "nccl", "gloo", "file"] = Field(
        default="auto", description="auto: nccl on CUDA, else gloo"
    )
    bucket_bytes: PositiveInt = Field(default=1 << 20, description="bytes a transfer operation")
    timeout_s: PositiveFloat = Field(default=10.0, description="limit of a join and of every transfer operation")
    inflight: Literal["keep", "recompute", "finish", "abort"] = Field(
        default="keep",
        description="running samples when weights change: keep their KV, recompute it, finish first (for "
        "coordinator.generate_timeout_s at most), or abort and be drawn again",
    )
    probe: bool = Field(
        default=True, description="a short greedy completion, compared among rollouts, before a rollout's first group"
    )
    lora: Literal["merged", "adapter"] = Field(
        default="merged",
        description="with model.lora_rank: push whole merged weights, or adapters only, which rollouts merge themselves",
    )


class EvalConfig(Section):
    """Evaluation on held-out prompts."""

    every_steps: NonNegativeInt = Field(default=10, description="steps between the small evaluations; 0: none")
    prompts: PositiveInt = Field(default=256, description="prompts of the full evaluation before and after")
    n: PositiveInt = Field(default=8, description="samples a prompt of the full evaluation")
    small_prompts: PositiveInt = Field(default=64, description="prompts of an evaluation in between")
    small_n: PositiveInt = Field(default=4, description="samples a prompt of an evaluation in between")
    temperature: PositiveFloat = Field(default=1.0, description="sampling temperature of evaluations")
    greedy: bool = Field(default=True, description="also one greedy completion a prompt")
    timeout_s: PositiveFloat = Field(default=600.0, description="longest time a rollout stays pinned")


class LaunchConfig(Section):
    """What `sluice up` starts on this machine."""

    rollout_replicas: NonNegativeInt = Field(default=1, description="rollout services; 0: all are started by hand")
    reward_replicas: NonNegativeInt = Field(default=1, description="reward services; 0: all are started by hand")
    learner_nproc_per_node: PositiveInt = Field(default=1, description="ranks of the learner on each of its machines")
    learner_nnodes: PositiveInt = Field(
        default=1, description="machines of the learner; the others run `sluice learner-node`"
    )
    learner_rdzv_endpoint: str | None = Field(
        default=None,
        pattern=r"^.+:\d{1,5}$",
        description="HOST:PORT of this machine where the learner's machines meet; needed when there are several",
    )
    max_restarts: NonNegativeInt = Field(
        default=3, description="restarts of one service within restart_window_s before the run is stopped"
    )
    restart_window_s: PositiveFloat = Field(default=3600.0, description="after this long a restart is forgotten")
    frozen_timeout_s: PositiveFloat = Field(
        default=30.0,
        description="a process that answered once and then is silent for this long is killed and started again",
    )
    ready_timeout_s: PositiveFloat = Field(default=300.0, description="limit for a service to become ready")
    grace_s: PositiveFloat = Field(default=15.0, description="time between SIGTERM and SIGKILL")
    check_reward: bool = Field(
        default=True, description="before training: gold answers must score right, garbage wrong"
    )


class NetworkConfig(Section):
    """Addresses, and who may call. Everything binds loopback unless told otherwise (docs/security.md)."""

    bind: str = Field(
        default="127.0.0.1",
        description="address every server of this machine listens on; another than loopback needs network.credentials",
    )
    advertise: str = Field(default="127.0.0.1", description="host other services reach this machine at")
    coordinator_port: NonNegativeInt = Field(default=50050, description="0: any free port")
    metrics: bool = Field(default=True, description="a Prometheus endpoint a service; it asks nobody who they are")
    credentials: str | None = Field(
        default=None,
        description="folder made by `sluice certs` or `sluice tokens`; each process gets its own role's part of it",
    )
    max_calls_per_s: PositiveFloat = Field(
        default=MAX_CALLS_PER_S, description="calls/s a server takes from one role on one machine; more wait and retry"
    )
    redis_url: str | None = Field(
        default=None,
        description="an existing Redis, redis://, rediss:// (TLS) or unix://, without its password; default: an embedded "
        "one in the run directory",
    )
    redis_password_file: str | None = Field(
        default=None, description="file with the password of redis_url; default: environment SLUICE_REDIS_PASSWORD"
    )
    redis_ca_file: str | None = Field(
        default=None, description="PEM of the authority behind rediss://; default: those this machine trusts"
    )

    @model_validator(mode="after")
    def _the_network_is_guarded(self) -> "NetworkConfig":
        if not is_loopback(self.bind) and self.credentials is None:
            raise ValueError(
                f"bind: must be a loopback address while network.credentials is not set, got {self.bind}; make credentials "
                "with `sluice certs DIR` (or `sluice tokens DIR --private-network`) and set network.credentials: DIR"
            )
        if self.redis_url is not None and (problem := password_problem(self.redis_url)):
            raise ValueError(f"redis_url: {problem}")
        return self


class Config(Section):
    """A run."""

    run: RunConfig = RunConfig()
    model: ModelConfig
    data: DataConfig
    rollout: RolloutConfig = RolloutConfig()
    algorithm: AlgorithmConfig = AlgorithmConfig()
    reward: RewardConfig = RewardConfig()
    learner: LearnerConfig = LearnerConfig()
    coordinator: CoordinatorConfig = CoordinatorConfig()
    weights: WeightsConfig = WeightsConfig()
    eval: EvalConfig = EvalConfig()
    launch: LaunchConfig = LaunchConfig()
    network: NetworkConfig = NetworkConfig()

    @property
    def gen_batch_size(self) -> int:
        """Groups of the first wave (verl's data.gen_batch_size)."""
        return self.data.gen_batch_size or self.data.train_batch_size

    @property
    def mini_batch_size(self) -> int:
        """Groups an optimizer update."""
        return self.learner.mini_batch_size or self.data.train_batch_size

    @property
    def partial_after(self) -> int | None:
        """Verdicts on one batch after which it is trained although it is not full; None: never."""
        filters = self.algorithm.filter_groups
        return self.gen_batch_size * filters.max_num_gen_batches if filters.on_starvation == "train_partial" else None

    @property
    def largest_group_bytes(self) -> int:
        """The compressed payload of a group whose completions all have max_response_length, about."""
        return self.rollout.n * self.data.max_response_length * PAYLOAD_BYTES_A_TOKEN

    @property
    def largest_batch_bytes(self) -> int:
        """A batch of such groups."""
        return self.data.train_batch_size * self.largest_group_bytes

    @property
    def departures(self) -> list[str]:
        """The settings that depart from the paper's algorithm, `algorithm.loss_mode: gspo` each."""
        return departures(self)

    @property
    def exact_dapo(self) -> bool:
        """Whether none does."""
        return not self.departures

    @model_validator(mode="after")
    def _parts_fit_together(self) -> "Config":
        data, buffer = self.data, self.reward.overlong_buffer
        problems: list[str] = []
        if self.algorithm.filter_groups.enable and self.rollout.n < 2:
            problems.append(
                "rollout.n: must be >= 2 while algorithm.filter_groups.enable is true, got "
                f"{self.rollout.n}; a group of one never has signal"
            )
        if buffer.enable and buffer.len >= data.max_response_length:
            problems.append(
                "reward.overlong_buffer.len: must be < data.max_response_length "
                f"({data.max_response_length}), got {buffer.len}"
            )
        if self.gen_batch_size < data.train_batch_size:
            problems.append(
                f"data.gen_batch_size: must be >= data.train_batch_size ({data.train_batch_size}), "
                f"got {self.gen_batch_size}"
            )
        if self.mini_batch_size > data.train_batch_size:
            problems.append(
                f"learner.mini_batch_size: must be <= data.train_batch_size ({data.train_batch_size}), "
                f"got {self.mini_batch_size}"
            )
        filters = self.algorithm.filter_groups
        if filters.on_starvation == "train_partial" and filters.max_num_gen_batches < 1:
            problems.append(
                "algorithm.filter_groups.on_starvation: train_partial needs algorithm.filter_groups.max_num_gen_batches >= 1, "
                f"got {filters.max_num_gen_batches}; nothing else says when a batch has waited long enough"
            )
        if (least := self.algorithm.min_group_size) and not 2 <= least <= self.rollout.n:
            problems.append(
                f"algorithm.min_group_size: must be 0 (off) or from 2 to rollout.n ({self.rollout.n}), got {least}; "
                "a group of one has no advantage"
            )
        problems += self._correction_problems()
        if self.weights.lora == "adapter" and not self.model.lora_rank:
            problems.append("weights.lora: adapter needs adapters; set model.lora_rank, or weights.lora: merged")
        if self.launch.learner_nnodes > 1 and self.launch.learner_rdzv_endpoint is None:
            problems.append(
                "launch.learner_rdzv_endpoint: must be HOST:PORT of this machine while launch.learner_nnodes is "
                f"{self.launch.learner_nnodes}, so that the other machines find it"
            )
        if self.largest_batch_bytes > self.coordinator.queue_max_bytes:
            problems.append(
                "coordinator.queue_max_bytes: must hold at least the largest possible batch, "
                f"{self.largest_batch_bytes} bytes, got {self.coordinator.queue_max_bytes}; the queue would not keep to it"
            )
        message = self.rollout.n * self.data.max_response_length * 8
        if message > MAX_MESSAGE_BYTES:
            problems.append(
                f"data.max_response_length: {self.rollout.n} samples (rollout.n) of {self.data.max_response_length} tokens "
                f"make a group of {message} bytes, and a group must fit one message of {MAX_MESSAGE_BYTES}; lower one of both"
            )
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _correction_problems(self) -> list[str]:
        weighted = self.algorithm.rollout_correction.rollout_is != "none"
        if weighted and self.algorithm.proximal == "rollout":
            return [
                "algorithm.rollout_correction.rollout_is: needs algorithm.proximal: recompute; with proximal: rollout the "
                "clipped ratio is the importance weight already"
            ]
        if not weighted and self.algorithm.proximal == "recompute" and self.coordinator.max_staleness > 0:
            return [
                "algorithm.proximal: recompute alone ignores who sampled a token, which collapses on stale ones: set "
                "algorithm.rollout_correction.rollout_is: token, or coordinator.max_staleness: 0"
            ]
        return []

    @field_validator("data")
    @classmethod
    def _evaluation_is_held_out(cls, data: DataConfig) -> DataConfig:
        # A reasoning-gym task holds out an eighth of its prompts by itself.
        shared = {name for name in data.train_files if not name.startswith("reasoning-gym:")} & set(data.val_files)
        if shared:
            raise ValueError(f"val_files: must not share files with train_files, both name {sorted(shared)}")
        return data
