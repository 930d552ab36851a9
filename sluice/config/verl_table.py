"""What becomes of every verl setting: moved, ignored because it makes no difference here, or accepted at one value only.

Written from verl's resolved default configuration and verl's DAPO recipe, old key names included. A key that ends in `.*`
stands for every key below that prefix without an entry of its own.
"""

from typing import Any

from sluice.config.verl_rules import (
    Function,
    Ignore,
    Move,
    Only,
    Rule,
    Switched,
    adv_estimator,
    bypass,
    bypass_loss,
    context_size,
    correction_level,
    dtype,
    engine,
    eval_greedy,
    eval_temperature,
    files,
    loss_mode,
    move,
    one_bound,
    resume,
    run_name,
    save_freq,
    schedule,
    token_level_loss,
    under,
)

_KL = "DAPO has no KL term and no reference model is loaded; set it to 0 or false"
_FSDP = "the learner shards with FSDP2 and plans memory by learner.max_tokens_per_micro_batch alone"
_CONTEXT = ("learner.context_parallel_size", "launch.learner_nproc_per_node")
_RANKS = (
    "the learner gets the fewest ranks that this takes (launch.learner_nproc_per_node); raise them to the GPUs that train, "
    "a multiple of it"
)
_MICRO = "micro-batches are planned by tokens (learner.max_tokens_per_micro_batch) and always packed"
_LOGPROBS = (
    "rollouts always return the log-probabilities they sampled with; algorithm.proximal says what the ratio is to"
)
_ENGINE = "the rollout's engine is set up by Sluice"
_RAY = "there is no Ray: services are processes, see `launch`"
_NO_CRITIC = "group advantages need no critic"
_NO_PARTS = "this part of verl has no counterpart"
_NEVER_CUT = "prompts longer than data.max_prompt_length are skipped and counted, never truncated"
_TEXT_ONLY = "prompts are text; verl's columns data_source and prompt are read, others are not"
_OBSERVE = "metrics, events and samples are always written to the run directory and exported to Prometheus"
_EVAL_TOP_K = "evaluation restricts samples by eval.top_p alone; expect other numbers where verl sets a top_k above 0"
_NEUTRAL = "behaviour log-probabilities must be those of the whole distribution; set top_p to 1 and top_k to -1"
_ONE_LOSS = "Sluice has no such reweighting; set it to false"
_PLAIN_MODEL = "a model is one ordinary Hugging Face folder; put what it needs into the folder and leave this unset"
_MANAGER = Only(
    values=("naive", "dapo", "prime", "batch", None),
    why="managers of verl's own all call the reward function, which is what is translated; write what yours does as a "
    "function for reward.routes and set it to dapo",
)
_MANAGED = "grading is by data_source, overlong shaping by reward.overlong_buffer"
_GRADERS = "grading is by data_source; write a verifier module and name it in reward.routes"
_CORRECTION = (
    "off-policy treatment is rollout_correction.rollout_is and .rollout_rs with a threshold each; leave this unset"
)
_WEIGHT = "the weight is proximal / rollout, so algorithm.proximal is recompute unless bypass_mode says otherwise"
_MASK = "masked tokens stay in the denominator of the loss, where verl takes them out"

_ESS = "actor_rollout_ref.actor.ess_scaling.enable"
_ESS_RULE = (
    "steps are scaled by sqrt(effective samples / samples) of weights that are not truncated; set scaling_rule to sqrt, "
    "base_ess_ratio to 1 and use_clipped to false"
)
_NO_BASELINE = "VCPO's baseline from gradient norms of single samples is not there; set it to false"

_ACTOR: dict[str, Rule] = {
    "ppo_mini_batch_size": move("learner.mini_batch_size"),
    "ppo_max_token_len_per_gpu": move("learner.max_tokens_per_micro_batch"),
    "clip_ratio": Move(to=("algorithm.clip_ratio_low", "algorithm.clip_ratio_high"), fallback=True),
    "clip_ratio_low": move("algorithm.clip_ratio_low"),
    "clip_ratio_high": move("algorithm.clip_ratio_high"),
    "clip_ratio_c": move("algorithm.clip_ratio_c"),
    "loss_agg_mode": move("algorithm.loss_agg_mode"),
    "loss_scale_factor": move("algorithm.loss_scale_factor"),
    "use_token_level_loss": Move(to=("algorithm.loss_agg_mode",), convert=token_level_loss, fallback=True),
    "grad_clip": move("learner.grad_clip"),
    "optim.lr": move("learner.lr"),
    "optim.lr_warmup_steps": move("learner.warmup_steps", lambda steps: max(0, steps)),
    "optim.weight_decay": move("learner.weight_decay"),
    "optim.betas": move("learner.betas"),
    "optim.lr_warmup_steps_ratio": Only(values=(0,), why="warm-up is in steps; set optim.lr_warmup_steps"),
    "optim.warmup_style": move("learner.lr_scheduler_type", schedule),
    "optim.lr_scheduler_type": move("learner.lr_scheduler_type", schedule),
    "optim.optimizer": Only(values=("AdamW",), why="the optimizer is AdamW; set it to AdamW"),
    "optim.optimizer_impl": Only(values=("torch.optim",), why="the optimizer is torch.optim.AdamW"),
    "optim.override_optimizer_config": Only(values=(None, {}), why="the optimizer takes lr, betas and weight_decay"),
    "optim.clip_grad": Ignore(why="gradients are clipped by learner.grad_clip (verl: actor.grad_clip)"),
    "optim.min_lr_ratio": move("learner.min_lr_ratio"),
    "optim.num_cycles": Only(values=(0.5,), why="a cosine falls once, to its floor; set it to 0.5"),
    "optim.zero_indexed_step": Ignore(why="steps are 0-based; the first one trains at lr / warmup_steps"),
    "optim.total_training_steps": Ignore(why="the length of a run is run.total_steps"),
    "use_kl_loss": Switched(
        switch="actor_rollout_ref.actor.kl_loss_coef", off=(0, 0.0), rule=Only(values=(False,), why=_KL)
    ),
    "kl_loss_coef": Switched(
        switch="actor_rollout_ref.actor.use_kl_loss", off=(False,), rule=Only(values=(0,), why=_KL)
    ),
    "kl_loss_type": Ignore(why="there is no KL term"),
    "entropy_coeff": Only(values=(0,), why="DAPO has no entropy bonus; set it to 0"),
    "ppo_epochs": Only(values=(1,), why="every group is trained once; set it to 1"),
    "policy_loss.loss_mode": Move(to=("algorithm.loss_mode",), convert=loss_mode, fallback=True),
    **{
        f"policy_loss.{key}": Ignore(why="only used by other policy losses")
        for key in (
            "clip_cov_ratio",
            "clip_cov_lb",
            "clip_cov_ub",
            "kl_cov_ratio",
            "ppo_kl_coef",
            "dro_beta",
            "rollout_correction.*",
        )
    },
    "tis_imp_ratio_cap": Only(values=(-1, None), why=_CORRECTION),
    "use_rollout_log_probs": Ignore(why=_LOGPROBS),
    "tau_pos": move("algorithm.tau_pos"),
    "tau_neg": move("algorithm.tau_neg"),
    "ess_scaling.enable": move("algorithm.ess_scaling"),
    **{
        f"ess_scaling.{key}": Switched(switch=_ESS, off=(False,), rule=Only(values=values, why=_ESS_RULE))
        for key, values in {"scaling_rule": ("sqrt",), "base_ess_ratio": (1,), "use_clipped": (False,)}.items()
    },
    "grad_baselining.enable": Only(values=(False,), why=_NO_BASELINE),
    "grad_baselining.*": Ignore(why="only used with actor.grad_baselining.enable"),
    "update_policy_per_traj": Ignore(why=_NO_BASELINE),
    "freeze_vision_tower": Ignore(why="models are text only"),
    "router_replay.mode": Only(values=("disabled",), why="expert routing is not replayed; set it to disabled"),
    "qat.enable": Only(values=(False,), why="there is no quantisation-aware training; set it to false"),
    "ppo_micro_batch_size": Ignore(why=_MICRO),
    "ppo_micro_batch_size_per_gpu": Ignore(why=_MICRO),
    "use_dynamic_bsz": Ignore(why=_MICRO),
    "use_remove_padding": Ignore(why=_MICRO),
    "shuffle": Ignore(why="mini-batches take the groups of a step in admission order"),
    "data_loader_seed": Ignore(why="mini-batches take the groups of a step in admission order"),
    "rollout_n": Ignore(why="taken from rollout.n"),
    "calculate_entropy": Ignore(why=_OBSERVE),
    "calculate_sum_pi_squared": Ignore(why=_OBSERVE),
    "ulysses_sequence_parallel_size": Move(to=_CONTEXT, convert=context_size, note=_RANKS),
    "fsdp_config.ulysses_sequence_parallel_size": Move(to=_CONTEXT, convert=context_size, note=_RANKS, fallback=True),
    **{key: Ignore(why=_FSDP) for key in ("strategy", "fsdp_config.*", "megatron.*")},
    **{key: Ignore(why=_FSDP) for key in ("use_torch_compile", "use_fused_kernels", "use_prefix_grouper")},
    **{key: Ignore(why=_FSDP) for key in ("entropy_checkpointing", "pad_to_length", "pad_to_length_bucket")},
    **{key: Ignore(why=_FSDP) for key in ("entropy_from_logits_with_chunking", "entropy_from_logits_chunk_size")},
    **{f"{key}.*": Ignore(why=_NO_PARTS) for key in ("checkpoint", "profiler", "router_replay", "qat")},
}

_ROLLOUT: dict[str, Rule] = {
    "n": move("rollout.n"),
    "temperature": move("rollout.temperature"),
    "name": move("rollout.engine", engine),
    "dtype": move("model.dtype", dtype),
    "tensor_model_parallel_size": move("rollout.tensor_parallel_size"),
    "gpu_memory_utilization": move("rollout.gpu_memory_utilization"),
    "enforce_eager": move("rollout.enforce_eager"),
    "max_num_seqs": move("rollout.max_num_seqs"),
    "val_kwargs.n": Move(to=("eval.n", "eval.small_n")),
    "val_kwargs.temperature": move("eval.temperature", eval_temperature),
    "val_kwargs.top_p": move("eval.top_p"),
    "val_kwargs.top_k": Ignore(why=_EVAL_TOP_K),
    "val_kwargs.do_sample": move("eval.greedy", eval_greedy),
    "top_p": Only(values=(1,), why=_NEUTRAL),
    "top_k": Only(values=(-1, 0), why=_NEUTRAL),
    "do_sample": Only(values=(True,), why="training samples; set it to true"),
    "ignore_eos": Only(values=(False,), why="a completion ends at its end token; set it to false"),
    "multi_turn.enable": Only(values=(False,), why="a prompt gets one completion, without tools; set it to false"),
    "agent.default_agent_loop": Only(values=("single_turn_agent",), why="a prompt gets one completion, without tools"),
    "engine_kwargs": Only(values=(None, {}), why="engines take no other arguments; leave it empty"),
    "engine_kwargs.vllm.disable_mm_preprocessor_cache": Ignore(why=_TEXT_ONLY),
    "router_config_path": Only(values=(None,), why="a request goes to the least loaded rollout; leave it unset"),
    "skip_rollout": Only(values=(False,), why="every completion is drawn anew; set it to false"),
    "skip_dump_dir": Ignore(why="only used with skip_rollout"),
    "engine_kwargs.*": Only(values=(None, {}), why="engines take no other arguments; leave it empty"),
    "quantization": Only(values=(None,), why="rollouts run the weights they are pushed; leave it unset"),
    "enable_rollout_routing_replay": Only(values=(False,), why="expert routing is not replayed; set it to false"),
    "expert_parallel_size": Only(values=(1,), why="engines are tensor-parallel; set it to 1"),
    "pipeline_model_parallel_size": Only(values=(1,), why="engines are tensor-parallel; set it to 1"),
    "data_parallel_size": Ignore(why="replicas are processes: launch.rollout_replicas"),
    "nnodes": Ignore(why="replicas are processes: launch.rollout_replicas"),
    "n_gpus_per_node": Ignore(why="replicas are processes: launch.rollout_replicas"),
    "prompt_length": Ignore(why="taken from data.max_prompt_length"),
    "response_length": Ignore(why="taken from data.max_response_length"),
    "max_model_len": Ignore(why="taken from data.max_prompt_length + data.max_response_length"),
    "seed": Ignore(why="every sample's seed follows from run.seed"),
    "calculate_log_probs": Ignore(why=_LOGPROBS),
    "logprobs_mode": Ignore(why=_LOGPROBS),
    **{
        f"log_prob_{key}": Ignore(why=_LOGPROBS)
        for key in ("micro_batch_size", "micro_batch_size_per_gpu", "use_dynamic_bsz", "max_token_len_per_gpu")
    },
    **{
        key: Ignore(why=_ENGINE)
        for key in (
            *("mode", "cudagraph_capture_sizes", "free_cache_engine", "max_num_batched_tokens"),
            *("enable_chunked_prefill", "enable_prefix_caching", "scheduling_policy", "load_format", "layered_summon"),
            *(
                "disable_log_stats",
                "over_sample_rate",
                "multi_stage_wake_up",
                "skip_tokenizer_init",
                "use_fire_sampling",
            ),
            *(
                "full_determinism",
                "moe_load_balance_metrics_interval",
                "quantization_config_file",
                "update_weights_bucket_megabytes",
            ),
            *("mtp", "mtp.*", "qat", "qat.*", "disaggregation.*", "checkpoint_engine.*", "limit_images"),
        )
    },
    **{f"{key}.*": Ignore(why=_OBSERVE) for key in ("trace", "profiler", "prometheus")},
    **{f"{key}.*": Ignore(why=_NO_PARTS) for key in ("multi_turn", "agent")},
}

_MODEL: dict[str, Rule] = {
    "path": move("model.path"),
    "enable_gradient_checkpointing": move("learner.gradient_checkpointing"),
    "use_remove_padding": Ignore(why=_MICRO),
    "lora_rank": move("model.lora_rank"),
    "lora.rank": Only(values=(0,), why="it is Megatron's; set lora_rank, lora_alpha and target_modules"),
    "lora_alpha": move("model.lora_alpha"),
    "target_modules": move("model.target_modules"),
    "lora_adapter_path": Only(values=(None,), why="adapters start from zero; leave it unset"),
    "mtp.enable": Only(values=(False,), why="multi-token prediction heads are not trained; set it to false"),
    "trust_remote_code": Only(values=(False,), why="models of transformers itself are trained; set it to false"),
    **{
        key: Only(values=(None, {}), why=_PLAIN_MODEL)
        for key in ("hf_config_path", "tokenizer_path", "custom_chat_template", "external_lib", "override_config")
    },
    "override_config.*": Only(values=(0, None), why=_PLAIN_MODEL),
    **{
        key: Ignore(why=_FSDP)
        for key in (
            *("enable_activation_offload", "use_liger", "use_fused_kernels", "fused_kernel_options.*", "tiled_mlp.*"),
            *(
                "use_shm",
                "use_efficient_resharding",
                "exclude_modules",
                "lora.*",
                "mtp.*",
            ),
        )
    },
}

_DATA: dict[str, Rule] = {
    "train_files": move("data.train_files", files),
    "val_files": move(
        "data.val_files",
        files,
        note="repeated rows are removed; for several samples a prompt set eval.n (32 for the AIME-2024 file of verl)",
    ),
    "train_batch_size": move("data.train_batch_size"),
    "gen_batch_size": move("data.gen_batch_size"),
    "max_prompt_length": move("data.max_prompt_length"),
    "max_response_length": move("data.max_response_length"),
    "shuffle": move("data.shuffle"),
    "seed": move("run.seed"),
    "prompt_key": Only(values=("prompt",), why="the column is called prompt; rename yours"),
    "reward_fn_key": Only(values=("data_source",), why="the column is called data_source; rename yours"),
    "train_max_samples": Only(values=(-1,), why="whole files are used; write a smaller file"),
    "val_max_samples": Only(values=(-1,), why="whole files are used; set eval.prompts in the new recipe"),
    "trust_remote_code": Only(values=(False,), why="tokenizers of transformers itself are used; set it to false"),
    "custom_cls.path": Only(values=(None,), why="data are .jsonl or .parquet files with verl's columns"),
    "tokenizer": Only(values=(None,), why=_PLAIN_MODEL),
    "apply_chat_template_kwargs": Only(values=({}, None), why=_PLAIN_MODEL),
    "apply_chat_template_kwargs.*": Only(values=(None,), why=_PLAIN_MODEL),
    "tool_config_path": Only(values=(None,), why="a prompt gets one completion, without tools"),
    "function_tool_path": Only(values=(None,), why="a prompt gets one completion, without tools"),
    "truncation": Ignore(why=_NEVER_CUT),
    "filter_overlong_prompts": Ignore(why=_NEVER_CUT),
    "filter_overlong_prompts_workers": Ignore(why=_NEVER_CUT),
    "val_batch_size": Ignore(why="an evaluation takes eval.prompts prompts"),
    "validation_shuffle": Ignore(why="an evaluation takes the same prompts each time"),
    "dataloader_num_workers": Ignore(why="prompts are tokenised as they are drawn"),
    "use_shm": Ignore(why="files are read where they are"),
    "custom_cls.name": Ignore(why="only used with custom_cls.path"),
    "sampler.class_path": Only(
        values=(None,), why="no code of yours draws prompts; leave it unset, or set data.sampler in the new recipe"
    ),
    "sampler.class_name": Ignore(why="only used with data.sampler.class_path"),
    "datagen.path": Only(values=(None,), why="data are .jsonl or .parquet files with verl's columns"),
    "datagen.name": Ignore(why="only used with data.datagen.path"),
    **{
        key: Ignore(why=_TEXT_ONLY)
        for key in (
            *("return_raw_input_ids", "return_raw_chat", "return_full_prompt", "return_multi_modal_inputs"),
            *(
                "image_key",
                "video_key",
                "audio_key",
                "image_patch_size",
                "mm_processor_kwargs",
                "mm_processor_kwargs.*",
            ),
        )
    },
}

_FILTER = "algorithm.filter_groups.enable"

_ALGORITHM: dict[str, Rule] = {
    "adv_estimator": move("algorithm.adv_estimator", adv_estimator),
    "norm_adv_by_std_in_grpo": move("algorithm.norm_adv_by_std_in_grpo"),
    "filter_groups.enable": move("algorithm.filter_groups.enable"),
    "filter_groups.metric": Switched(switch=_FILTER, off=(False,), rule=move("algorithm.filter_groups.metric")),
    "filter_groups.max_num_gen_batches": Switched(
        switch=_FILTER, off=(False,), rule=move("algorithm.filter_groups.max_num_gen_batches")
    ),
    "filter_groups.max_inflight_gen_batches": Ignore(why="data.gen_batch_size caps the groups in flight"),
    "use_kl_in_reward": Switched(switch="algorithm.kl_ctrl.kl_coef", off=(0, 0.0), rule=Only(values=(False,), why=_KL)),
    "kl_ctrl.kl_coef": Switched(switch="algorithm.use_kl_in_reward", off=(False,), rule=Only(values=(0,), why=_KL)),
    "kl_ctrl.*": Ignore(why="there is no KL term"),
    "kl_penalty": Ignore(why="there is no KL term"),
    "use_pf_ppo": Only(values=(False,), why=_ONE_LOSS),
    "pf_ppo.*": Ignore(why="only used by other policy losses"),
    "gamma": Ignore(why="one reward a completion, relative to its group: nothing is discounted"),
    "lam": Ignore(why="one reward a completion, relative to its group: nothing is discounted"),
    "rollout_is": Only(values=(False, None), why=_CORRECTION),
    "rollout_is_threshold": Only(values=(None,), why=_CORRECTION),
    **{
        f"rollout_is_{key}": Ignore(why="only used with algorithm.rollout_is_threshold")
        for key in ("threshold_lower", "level", "mode", "veto_threshold")
    },
    "rollout_correction.rollout_is": move(
        "algorithm.rollout_correction.rollout_is", correction_level("token", "sequence"), note=_WEIGHT
    ),
    "rollout_correction.rollout_is_threshold": move("algorithm.rollout_correction.rollout_is_threshold", one_bound),
    "rollout_correction.rollout_rs": move(
        "algorithm.rollout_correction.rollout_rs", correction_level("token", "sequence", "geometric"), note=_MASK
    ),
    "rollout_correction.rollout_rs_threshold": move("algorithm.rollout_correction.rollout_rs_threshold", one_bound),
    "rollout_correction.rollout_rs_threshold_lower": move("algorithm.rollout_correction.rollout_rs_threshold_lower"),
    "rollout_correction.bypass_mode": move("algorithm.proximal", bypass),
    "rollout_correction.loss_type": Switched(
        switch="algorithm.rollout_correction.bypass_mode", off=(False,), rule=move("algorithm.loss_mode", bypass_loss)
    ),
    "rollout_correction.rollout_is_batch_normalize": Only(values=(False, None), why=_CORRECTION),
    "rollout_correction.rollout_token_veto_threshold": Only(values=(None,), why=_CORRECTION),
}

_OVERLONG: dict[str, Rule] = {
    "enable": move("reward.overlong_buffer.enable"),
    "len": move("reward.overlong_buffer.len"),
    "penalty_factor": move("reward.overlong_buffer.penalty_factor"),
    "log": Ignore(why=_OBSERVE),
}

_FUNCTION: dict[str, Rule] = {
    "path": Function(part="path"),
    "name": Function(part="name"),
    "reward_kwargs": Only(values=({}, None), why="must be a mapping of keyword arguments"),
    "reward_kwargs.*": Function(part="setting"),
}

_REWARD: dict[str, Rule] = {
    **under("reward_model.overlong_buffer", _OVERLONG),
    **under("custom_reward_function.overlong_buffer", _OVERLONG),
    **under("reward_model.reward_kwargs.overlong_buffer_cfg", _OVERLONG),
    **under("reward.reward_kwargs.overlong_buffer_cfg", _OVERLONG),
    "reward_model.reward_kwargs.max_resp_len": Ignore(why="taken from data.max_response_length"),
    "reward.reward_kwargs.max_resp_len": Ignore(why="taken from data.max_response_length"),
    "reward_model.enable": Only(
        values=(False, None), why="answers are verified, not judged by a model; set it to false"
    ),
    "reward.reward_model.enable": Only(values=(False,), why="answers are verified, not judged by a model"),
    **under("custom_reward_function", _FUNCTION),
    **under("reward.custom_reward_function", _FUNCTION),
    "reward.reward_manager.module.path": Only(values=(None,), why=_GRADERS),
    "sandbox_fusion.url": Only(values=(None,), why=_GRADERS),
    "reward_model.sandbox_fusion.url": Only(values=(None,), why=_GRADERS),
    "reward_model.sandbox_fusion.*": Ignore(why="only used with sandbox_fusion.url"),
    "reward.sandbox_fusion.url": Only(values=(None,), why=_GRADERS),
    "reward_model.reward_manager": _MANAGER,
    "reward.reward_manager.name": _MANAGER,
    "reward.reward_manager.*": Ignore(why=_MANAGED),
    "reward_model.launch_reward_fn_async": Ignore(why="reward services always run beside generation and training"),
    **{
        key: Ignore(why="reward services are processes: launch.reward_replicas, reward.workers")
        for key in ("reward_model.num_workers", "reward.num_workers", "sandbox_fusion.*", "reward.sandbox_fusion.*")
    },
    **{
        key: Ignore(why="there is no reward model")
        for key in (
            *("reward_model.strategy", "reward_model.model.*", "reward_model.rollout.*", "reward_model.profiler.*"),
            *("reward_model.micro_batch_size", "reward_model.micro_batch_size_per_gpu", "reward_model.max_length"),
            *("reward_model.ulysses_sequence_parallel_size", "reward_model.use_dynamic_bsz", "reward_model.nnodes"),
            *("reward_model.forward_max_token_len_per_gpu", "reward_model.n_gpus_per_node"),
            *(
                "reward_model.enable_resource_pool",
                "reward_model.reward_loop_source",
                "reward_model.reward_loop_class_name",
            ),
            *("reward_model.reward_loop_module_path", "reward.reward_model.*"),
        )
    },
}

_TRAINER: dict[str, Rule] = {
    "total_training_steps": move("run.total_steps"),
    "save_freq": move("learner.checkpoint_every_steps", save_freq),
    "test_freq": move("eval.every_steps", lambda steps: max(0, steps)),
    "experiment_name": move("run.name", run_name),
    "resume_mode": move("learner.resume", resume),
    "max_actor_ckpt_to_keep": move("learner.keep_checkpoints"),
    "val_only": Only(values=(False,), why="a run trains; evaluate a model folder with `sluice evaluate --model`"),
    "resume_from_path": Only(values=(None, False), why="set learner.resume to the checkpoint's path in the new recipe"),
    "total_epochs": Ignore(why="the length of a run is run.total_steps, set by trainer.total_training_steps"),
    "project_name": Ignore(why="runs are told apart by run.name"),
    "val_before_train": Ignore(why="there is always an evaluation before and after"),
    "default_local_dir": Ignore(why="checkpoints are in the run directory, which is made under run.dir"),
    "default_hdfs_dir": Ignore(why="checkpoints are in the run directory, which is made under run.dir"),
    **{
        key: Ignore(why=_OBSERVE)
        for key in (
            *("logger", "log_val_generations", "val_generations_to_log_to_wandb", "rollout_data_dir"),
            *("validation_data_dir", "profile_steps", "controller_nsight_options.*", "worker_nsight_options.*"),
        )
    },
    "checkpoint_callback_class": Only(values=(None,), why="nothing of yours is called at a checkpoint; leave it unset"),
    **{
        key: Ignore(why=_RAY)
        for key in ("nnodes", "n_gpus_per_node", "device", "ray_wait_register_center_timeout", "esi_redundant_time")
    },
    **{key: Ignore(why=_NO_CRITIC) for key in ("critic_warmup", "max_critic_ckpt_to_keep")},
    **{
        key: Ignore(why=_NO_PARTS)
        for key in (
            *("balance_batch", "remove_previous_ckpt_in_save", "del_local_ckpt_after_load", "use_legacy_worker_impl"),
            *("use_v1", "v1.*"),
        )
    },
}

TABLE: dict[str, Rule] = {
    **under("actor_rollout_ref.actor", _ACTOR),
    **under("actor_rollout_ref.rollout", _ROLLOUT),
    **under("actor_rollout_ref.model", _MODEL),
    "actor_rollout_ref.ref.*": Ignore(why="there is no KL term, so no reference model"),
    "actor_rollout_ref.hybrid_engine": Ignore(why="rollouts and learner are services of their own"),
    "actor_rollout_ref.nccl_timeout": Ignore(why="every wait has a deadline of its own"),
    **under("data", _DATA),
    **under("algorithm", _ALGORITHM),
    **_REWARD,
    **under("trainer", _TRAINER),
    "critic.*": Ignore(why=_NO_CRITIC),
    "hydra.*": Ignore(why="Hydra only puts verl's configuration together"),
    "distillation.enabled": Only(values=(False,), why="there is no teacher model; set it to false"),
    **{f"{key}.*": Ignore(why=_RAY) for key in ("ray_kwargs", "ray_init", "transfer_queue")},
    **{f"{key}.*": Ignore(why=_NO_PARTS) for key in ("global_profiler", "skip", "distillation")},
}
"""Every verl key this import knows."""

DEFAULTS: dict[str, Any] = {
    "data.train_batch_size": 1024,
    "data.max_prompt_length": 512,
    "data.max_response_length": 512,
    "actor_rollout_ref.rollout.n": 1,
    "actor_rollout_ref.actor.ppo_mini_batch_size": 256,
    "actor_rollout_ref.actor.clip_ratio": 0.2,
    "actor_rollout_ref.actor.clip_ratio_c": 3.0,
    "actor_rollout_ref.actor.optim.lr_warmup_steps": 0,
    "actor_rollout_ref.actor.optim.weight_decay": 0.01,
    "algorithm.filter_groups.enable": False,
}
"""What verl trains with where a source is silent and Sluice's own default differs."""
