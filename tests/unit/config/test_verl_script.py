"""The settings of verl's DAPO reproduction of Qwen2.5-32B, as a list of settings and as YAML."""

from typing import Any

from sluice.config.load import load_config
from sluice.config.verl import from_verl, looks_like_verl
from sluice.config.verl_table import TABLE
from sluice.config.yaml_text import print_yaml
from tests.unit.config.verl_cases import ACTOR, ROLLOUT

_TEXT = """\
data.train_files=/data/dapo-math-17k.parquet data.val_files=/data/aime-2024.parquet data.prompt_key=prompt
data.truncation='left' data.max_prompt_length=2048 data.max_response_length=20480 data.gen_batch_size=1536
data.train_batch_size=512 ROLLOUT.n=16 algorithm.adv_estimator=grpo algorithm.use_kl_in_reward=False
algorithm.kl_ctrl.kl_coef=0.0 ACTOR.use_kl_loss=False ACTOR.kl_loss_coef=0.0 ACTOR.clip_ratio_low=0.2
ACTOR.clip_ratio_high=0.28 ACTOR.clip_ratio_c=10.0 ACTOR.loss_agg_mode=token-mean algorithm.filter_groups.enable=True
algorithm.filter_groups.max_num_gen_batches=10 algorithm.filter_groups.metric=acc REF.model.use_remove_padding=True
ACTOR.use_dynamic_bsz=True ACTOR.ppo_max_token_len_per_gpu=22528 REF.ref.log_prob_max_token_len_per_gpu=22528
ROLLOUT.log_prob_max_token_len_per_gpu=22528 REF.model.path=/models/Qwen2.5-32B
+REF.model.override_config.attention_dropout=0. +REF.model.override_config.embd_pdrop=0.
+REF.model.override_config.resid_pdrop=0. REF.model.enable_gradient_checkpointing=True ACTOR.optim.lr=1e-6
ACTOR.optim.lr_warmup_steps=10 ACTOR.optim.weight_decay=0.1 ACTOR.ppo_mini_batch_size=32
ACTOR.fsdp_config.param_offload=True ACTOR.fsdp_config.optimizer_offload=True ACTOR.entropy_coeff=0
ACTOR.grad_clip=1.0 ACTOR.ulysses_sequence_parallel_size=8 ROLLOUT.gpu_memory_utilization=0.80
ROLLOUT.tensor_model_parallel_size=4 ROLLOUT.enable_chunked_prefill=True ROLLOUT.max_num_batched_tokens=22528
ROLLOUT.temperature=1.0 ROLLOUT.top_p=1.0 ROLLOUT.top_k=-1 ROLLOUT.val_kwargs.temperature=1.0
ROLLOUT.val_kwargs.top_p=0.7 ROLLOUT.val_kwargs.top_k=-1 ROLLOUT.val_kwargs.do_sample=True ROLLOUT.val_kwargs.n=1
reward_model.reward_manager=dapo reward_model.overlong_buffer.enable=True reward_model.overlong_buffer.len=4096
reward_model.overlong_buffer.penalty_factor=1.0 trainer.logger=['console','wandb'] trainer.project_name="DAPO"
trainer.experiment_name="DAPO-Qwen2.5-32B" trainer.n_gpus_per_node=8 trainer.nnodes=16 +trainer.val_before_train=True
trainer.test_freq=5 trainer.save_freq=5 trainer.total_epochs=1 trainer.resume_mode=auto
"""
_SHORT = {"REF.": "actor_rollout_ref.", "ACTOR.": f"{ACTOR}.", "ROLLOUT.": f"{ROLLOUT}."}


def _in_full(setting: str) -> str:
    for short, name in _SHORT.items():
        setting = setting.replace(short, name)
    return setting


DAPO_SCRIPT = [_in_full(setting) for setting in _TEXT.split()]
"""Shell variables are replaced by their values."""

GOLDEN = {
    "run": {"name": "DAPO-Qwen2.5-32B"},
    "model": {"path": "/models/Qwen2.5-32B"},
    "data": {
        "train_files": ["/data/dapo-math-17k.parquet"],
        "val_files": ["/data/aime-2024.parquet"],
        "max_prompt_length": 2048,
        "max_response_length": 20480,
        "gen_batch_size": 1536,
        "train_batch_size": 512,
    },
    "rollout": {"n": 16, "gpu_memory_utilization": 0.8, "tensor_parallel_size": 4, "temperature": 1.0},
    "algorithm": {
        "clip_ratio_low": 0.2,
        "clip_ratio_high": 0.28,
        "clip_ratio_c": 10.0,
        "loss_agg_mode": "token-mean",
        "filter_groups": {"enable": True, "max_num_gen_batches": 10, "metric": "acc"},
    },
    "reward": {"overlong_buffer": {"enable": True, "len": 4096, "penalty_factor": 1.0}},
    "learner": {
        "max_tokens_per_micro_batch": 22528,
        "context_parallel_size": 8,
        "gradient_checkpointing": True,
        "lr": 1e-6,
        "warmup_steps": 10,
        "weight_decay": 0.1,
        "mini_batch_size": 32,
        "grad_clip": 1.0,
        "checkpoint_every_steps": 5,
        "resume": "auto",
    },
    "eval": {"temperature": 1.0, "top_p": 0.7, "n": 1, "small_n": 1, "every_steps": 5},
    "launch": {"learner_nproc_per_node": 8},
}


def nested(settings: list[str]) -> dict[str, Any]:
    """The same settings as a YAML tree."""
    tree: dict[str, Any] = {}
    for key, value in (line.lstrip("+").split("=", 1) for line in settings):
        *sections, leaf = key.split(".")
        place = tree
        for section in sections:
            place = place.setdefault(section, {})
        place[leaf] = {"True": True, "False": False}.get(value, value.strip("'\""))
        if value.replace(".", "").replace("-", "").isdigit():
            place[leaf] = float(value) if "." in value else int(value)
    tree["actor_rollout_ref"]["actor"]["optim"]["lr"] = 1e-6
    return tree


def test_the_dapo_script_as_a_list_of_settings() -> None:
    assert from_verl(DAPO_SCRIPT).config_tree == GOLDEN


def test_the_dapo_script_as_yaml() -> None:
    assert from_verl(nested(DAPO_SCRIPT)).config_tree == GOLDEN
    dotted = {line.lstrip("+").split("=", 1)[0]: None for line in DAPO_SCRIPT}
    assert looks_like_verl(dotted)


def test_the_translation_is_a_configuration_and_exact_dapo(tmp_path: Any) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(print_yaml(from_verl(DAPO_SCRIPT).config_tree))
    config = load_config(path)
    assert (config.data.train_batch_size, config.gen_batch_size) == (512, 1536)
    assert (config.rollout.n, config.learner.mini_batch_size) == (16, 32)
    assert config.exact_dapo


def test_what_is_ignored_is_said_with_a_reason() -> None:
    notes = "\n".join(from_verl(DAPO_SCRIPT).notes)
    for key in (
        "trainer.nnodes",
        f"{ACTOR}.fsdp_config.*",
        "data.truncation",
    ):
        assert key in notes
    assert "run.total_steps: is not set" in notes
    assert "eval.n" in notes
    assert f"{ACTOR}.ulysses_sequence_parallel_size: the learner gets the fewest ranks that this takes" in notes


def test_every_setting_is_translated_ignored_or_checked() -> None:
    notes = "\n".join(from_verl(DAPO_SCRIPT).notes)
    for line in DAPO_SCRIPT:
        key = line.lstrip("+").split("=")[0]
        rule = TABLE.get(key)
        assert rule is not None or key.rpartition(".")[0] in notes or "override_config" in key
