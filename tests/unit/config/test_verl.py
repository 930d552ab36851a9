"""verl settings are translated, ignored with a reason, or refused by name."""

from pathlib import Path
from typing import Any

import pytest

from services.reward.ports import Completion, Question
from services.reward.routing import Router
from services.reward.sandbox.loading import Asked
from sluice.config.graders import check_graders
from sluice.config.load import load_config
from sluice.config.problems import schema_keys
from sluice.config.verl import from_verl
from sluice.config.verl_rules import Move
from sluice.config.verl_table import DEFAULTS, TABLE
from sluice.errors import ConfigError
from tests.unit.config.verl_cases import ACTOR, ROLLOUT, refusals, translated


def test_sequence_parallelism_is_context_parallelism_by_either_key_and_one_is_the_default() -> None:
    engine = f"{ACTOR}.fsdp_config.ulysses_sequence_parallel_size"
    assert translated(f"{engine}=4")["learner"]["context_parallel_size"] == 4
    both = translated(f"{ACTOR}.ulysses_sequence_parallel_size=2", f"{engine}=1")
    assert (both["learner"]["context_parallel_size"], both["launch"]) == (2, {"learner_nproc_per_node": 2})
    assert "context_parallel_size" not in translated(f"{ACTOR}.ulysses_sequence_parallel_size=1")["learner"]


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        (f"{ACTOR}.kl_loss_coef=0.001", "no KL term"),
        (f"{ACTOR}.use_kl_loss=True", "no KL term"),
        ("algorithm.use_kl_in_reward=True", "no KL term"),
        ("algorithm.kl_ctrl.kl_coef=0.001", "no KL term"),
        ("algorithm.adv_estimator=gae", "set it to grpo"),
        (f"{ROLLOUT}.top_p=0.95", "set top_p to 1"),
        (f"{ROLLOUT}.top_k=50", "top_k to -1"),
        (f"{ACTOR}.entropy_coeff=0.001", "no entropy bonus"),
        (f"{ACTOR}.ppo_epochs=2", "trained once"),
        (f"{ACTOR}.policy_loss.loss_mode=clip_cov", "dppo_kl and sapo"),
        (f"{ACTOR}.grad_baselining.enable=True", "baseline from gradient norms"),
        ("algorithm.rollout_correction.loss_type=pg", "ppo_clip and reinforce"),
        (f"{ACTOR}.optim.lr_scheduler_type=polynomial", "constant, linear and cosine"),
        (f"{ACTOR}.optim.lr_warmup_steps_ratio=0.1", "set optim.lr_warmup_steps"),
        (f"{ROLLOUT}.name=sglang", "set it to vllm"),
        (f"{ROLLOUT}.multi_turn.enable=True", "without tools"),
        (f"{ROLLOUT}.engine_kwargs.vllm.swap_space=4", "leave it empty"),
        ("actor_rollout_ref.model.lora_adapter_path=somewhere", "leave it unset"),
        ("actor_rollout_ref.model.override_config.attention_dropout=0.1", "leave this unset"),
        ("reward_model.enable=True", "verified, not judged"),
        ("custom_reward_function.path=my.txt", "must be a Python file"),
        ("reward_model.reward_manager=mine", "set it to dapo"),
        ("reward.reward_manager.module.path=mine.py", "reward.routes"),
        ("data.prompt_key=question", "rename yours"),
        ("algorithm.rollout_correction.rollout_is=batch", "token, sequence"),
        ("algorithm.rollout_correction.rollout_is_threshold=0.5_5", "rollout_rs_threshold_lower to the lower one"),
        ("algorithm.rollout_correction.rollout_is_threshold=0.5_5.0", "rollout_rs: token"),
        ("algorithm.rollout_correction.rollout_rs_threshold=0.5_2.0", "two settings"),
        ("algorithm.rollout_correction.rollout_rs=token_k1", "geometric"),
        ("trainer.resume_mode=resume_path", "learner.resume"),
        ("data.max_prompt_length=${max_prompt_length}", "write the value itself"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name_with_a_fix(setting: str, reason: str) -> None:
    key, _, value = setting.partition("=")
    (line,) = refusals(setting)
    assert line.startswith(f"{key}: ")
    assert reason in line
    assert value.strip("${}") in line


def test_all_refusals_come_at_once() -> None:
    lines = refusals(f"{ACTOR}.kl_loss_coef=1", "data.train_batch_size=8", f"{ACTOR}.ppo_minibatch_size=4")
    assert [line.split(": ")[0] for line in lines] == [f"{ACTOR}.kl_loss_coef", f"{ACTOR}.ppo_minibatch_size"]
    assert lines[1].endswith(f"did you mean {ACTOR}.ppo_mini_batch_size?")


SECTION_IGNORED = f"{ACTOR}.fsdp_config."
"""Its other keys are ignored, so a typo there is ignored too, and said."""


@pytest.mark.parametrize(
    "key", [key for key, rule in TABLE.items() if isinstance(rule, Move) and not key.startswith(SECTION_IGNORED)]
)
def test_a_typo_in_any_translated_key_is_refused_with_a_hint(key: str) -> None:
    (line,) = refusals(f"{key}x=1")
    assert line.startswith(f"{key}x: is not a key of verl")
    assert "did you mean" in line


def test_everything_moves_to_a_key_of_the_schema() -> None:
    known = set(schema_keys())
    for key, rule in TABLE.items():
        if isinstance(rule, Move):
            assert set(rule.to) <= known, key
    assert all(isinstance(TABLE[key], Move) for key in DEFAULTS)


def test_verls_defaults_hold_where_the_source_is_silent() -> None:
    translation = from_verl(["actor_rollout_ref.model.path=m", "algorithm.adv_estimator=grpo"])
    algorithm = translation.config_tree["algorithm"]
    assert algorithm == {
        "clip_ratio_low": 0.2,
        "clip_ratio_high": 0.2,
        "clip_ratio_c": 3.0,
        "filter_groups": {"enable": False},
    }
    assert translation.config_tree["learner"] == {"mini_batch_size": 256, "warmup_steps": 0, "weight_decay": 0.01}
    assert any(note.startswith("algorithm.clip_ratio_c: 3.0 is verl's default") for note in translation.notes)


def test_off_policy_treatment_and_loss_modes_are_translated() -> None:
    algorithm = translated(
        "algorithm.rollout_correction.rollout_is=token",
        "algorithm.rollout_correction.rollout_is_threshold=3.0",
        "algorithm.rollout_correction.rollout_rs=geometric",
        f"{ACTOR}.policy_loss.loss_mode=gspo",
    )["algorithm"]
    assert algorithm["rollout_correction"] == {
        "rollout_is": "token",
        "rollout_is_threshold": 3.0,
        "rollout_rs": "geometric",
    }
    assert (algorithm["proximal"], algorithm["loss_mode"]) == ("recompute", "gspo")
    bypassed = translated("algorithm.rollout_correction.bypass_mode=true")["algorithm"]
    assert bypassed["proximal"] == "rollout"


def test_losses_for_greater_age_are_translated() -> None:
    sapo = (f"{ACTOR}.policy_loss.loss_mode=sapo", f"{ACTOR}.tau_pos=1.0", f"{ACTOR}.tau_neg=1.2")
    algorithm = translated(*sapo, "algorithm.adv_estimator=maxrl", f"{ACTOR}.ess_scaling.enable=true")["algorithm"]
    assert {key: algorithm[key] for key in ("loss_mode", "tau_pos", "tau_neg", "adv_estimator", "ess_scaling")} == {
        "loss_mode": "sapo",
        "tau_pos": 1.0,
        "tau_neg": 1.2,
        "adv_estimator": "maxrl",
        "ess_scaling": True,
    }
    assert translated(f"{ACTOR}.policy_loss.loss_mode=dppo_tv")["algorithm"]["loss_mode"] == "dppo_tv"
    correction = "algorithm.rollout_correction"
    bypass = (
        f"{correction}.bypass_mode=true",
        f"{correction}.loss_type=reinforce",
        f"{correction}.rollout_is=sequence",
    )
    for given in ("vanilla", "bypass_mode"):
        algorithm = translated(f"{ACTOR}.policy_loss.loss_mode={given}", *bypass)["algorithm"]
        assert (algorithm["loss_mode"], algorithm["proximal"]) == ("reinforce", "rollout")
    off = translated(f"{correction}.bypass_mode=false", f"{correction}.loss_type=reinforce")["algorithm"]
    assert "loss_mode" not in off
    notes = from_verl(["actor_rollout_ref.model.path=m", *sapo]).notes
    assert any("verl's sapo takes seq-mean-token-mean" in note for note in notes)


def test_verls_resolved_defaults_of_the_correction_change_nothing() -> None:
    silent = ("rollout_is=null", "rollout_is_threshold=2.0", "rollout_rs=null", "bypass_mode=false")
    algorithm = translated(*(f"algorithm.rollout_correction.{setting}" for setting in silent))["algorithm"]
    assert "proximal" not in algorithm
    assert algorithm["rollout_correction"] == {"rollout_is_threshold": 2.0}


def test_lora_and_the_schedule_are_translated() -> None:
    model = "actor_rollout_ref.model"
    tree = translated(
        f"{model}.lora_rank=16", f"{model}.lora_alpha=32", f"{model}.target_modules=all-linear",
        f"{ACTOR}.optim.lr_scheduler_type=cosine", f"{ACTOR}.optim.min_lr_ratio=0.1",
    )  # fmt: skip
    assert tree["model"]["lora_rank"] == 16
    assert tree["model"]["lora_alpha"] == 32
    assert tree["model"]["target_modules"] == "all-linear"
    assert tree["learner"]["lr_scheduler_type"] == "cosine"
    assert tree["learner"]["min_lr_ratio"] == 0.1


def test_clip_ratio_stands_for_both_bounds_unless_they_are_given() -> None:
    both = translated(f"{ACTOR}.clip_ratio=0.3")["algorithm"]
    assert (both["clip_ratio_low"], both["clip_ratio_high"]) == (0.3, 0.3)
    one = translated(f"{ACTOR}.clip_ratio_high=0.28", f"{ACTOR}.clip_ratio=0.3")["algorithm"]
    assert (one["clip_ratio_low"], one["clip_ratio_high"]) == (0.3, 0.28)


@pytest.mark.parametrize(
    "home",
    [
        "reward_model.overlong_buffer",
        "custom_reward_function.overlong_buffer",
        "reward_model.reward_kwargs.overlong_buffer_cfg",
        "reward.reward_kwargs.overlong_buffer_cfg",
    ],
)
def test_the_overlong_buffer_is_found_in_all_its_homes(home: str) -> None:
    tree = translated(f"{home}.enable=True", f"+{home}.len=4096", f"{home}.penalty_factor=0.5", f"{home}.log=True")
    assert tree["reward"]["overlong_buffer"] == {"enable": True, "len": 4096, "penalty_factor": 0.5}


# As a launch script with a reward function of its own resolves to.
FUNCTION_YAML = """\
actor_rollout_ref: {model: {path: m}, rollout: {n: 4}, actor: {ppo_mini_batch_size: 4}}
data: {train_files: sums.parquet, train_batch_size: 4, max_response_length: 64}
algorithm: {adv_estimator: grpo, filter_groups: {enable: true, metric: acc}}
reward_model: {enable: false, reward_manager: dapo}
custom_reward_function:
  path: PATH
  name: score_sum
  reward_kwargs: {bonus: 0.5, marks: {end: "#"}}
"""

FUNCTION_FILE = """\
def score_sum(data_source, solution_str, ground_truth, extra_info=None, bonus=0.0, marks=None):
    answer = solution_str.rpartition(marks["end"])[2]
    right = answer == ground_truth and data_source == "sums" and extra_info == {"split": "train"}
    return {"score": float(right) + bonus, "acc": right, "pred": answer, "bonus": bonus}
"""


@pytest.mark.parametrize("path", ["{folder}/mine.py", "file://{folder}/mine.py"])
def test_a_reward_function_of_ones_own_becomes_a_route_and_grades(tmp_path: Path, path: str) -> None:
    (tmp_path / "mine.py").write_text(FUNCTION_FILE)
    recipe = tmp_path / "verl.yaml"
    recipe.write_text(FUNCTION_YAML.replace("PATH", path.format(folder=tmp_path)))
    config = load_config(recipe)
    check_graders(config)
    (part,) = Router(config.reward.routes).parts_of("any/source")
    assert part.verifier == f"{tmp_path}/mine.py:score_sum"
    question = Question(data_source="sums", prompt_text="1+1=", ground_truth="2", extra_info={"split": "train"})
    reply = Asked(part.verifier, part.settings).about(question, Completion(text="so #2", finished=True))
    grade = reply["grade"]
    assert (grade["raw_score"], grade["acc"], grade["extracted"], grade["parts"]) == (1.5, 1.0, "2", {"bonus": 0.5})


@pytest.mark.parametrize("home", ["custom_reward_function", "reward.custom_reward_function"])
def test_a_reward_function_has_verls_default_name_and_may_be_in_a_package(home: str) -> None:
    assert translated(f"{home}.path=my.py")["reward"] == {"routes": {"*": {"grader": "my.py:compute_score"}}}
    package = translated(f"{home}.path=pkg://team/rewards/sums", f"{home}.name=score")["reward"]
    assert package == {"routes": {"*": {"grader": "team.rewards.sums:score"}}}


def test_what_a_reward_function_means_is_said_and_a_name_alone_changes_nothing() -> None:
    (note,) = (
        note for note in from_verl(["custom_reward_function.path=my.py"]).notes if "my.py" in note or "acc" in note
    )
    assert note.startswith("custom_reward_function.path: compute_score grades every data source")
    silent = from_verl(["custom_reward_function.path=null", "custom_reward_function.name=compute_score"])
    assert "reward" not in silent.config_tree
    assert "ignored, only used with custom_reward_function.path: custom_reward_function.name" in silent.notes
    old, new = "custom_reward_function.path", "reward.custom_reward_function.path"
    assert refusals(f"{old}=a.py", f"{new}=b.py") == [
        f"{new}: contradicts {old}, got 'b.py' and 'a.py'; give one of them"
    ]


def test_two_settings_for_one_thing_must_agree() -> None:
    old, new = "reward_model.overlong_buffer.len", "reward.reward_kwargs.overlong_buffer_cfg.len"
    assert translated(f"{old}=4", f"{new}=4")["reward"] == {"overlong_buffer": {"len": 4}}
    assert refusals(f"{old}=4", f"{new}=8") == [f"{new}: contradicts {old}, got 8 and 4; give one of them"]


@pytest.mark.parametrize(
    ("setting", "section", "expected"),
    [
        (f"{ACTOR}.use_token_level_loss=False", "algorithm", {"loss_agg_mode": "seq-mean-token-mean"}),
        (f"{ACTOR}.optim.lr_warmup_steps=-1", "learner", {"warmup_steps": 0}),
        (f"{ACTOR}.optim.betas=[0.9,0.95]", "learner", {"betas": [0.9, 0.95]}),
        ("data.train_files=['a.parquet','b.parquet']", "data", {"train_files": ["a.parquet", "b.parquet"]}),
        ("trainer.total_training_steps=300", "run", {"total_steps": 300}),
        ("trainer.experiment_name='my run: 1'", "run", {"name": "my-run-1"}),
        ("trainer.test_freq=-1", "eval", {"every_steps": 0}),
        (f"{ROLLOUT}.val_kwargs.n=32", "eval", {"n": 32, "small_n": 32}),
        (f"{ROLLOUT}.val_kwargs.do_sample=False", "eval", {"greedy": True}),
        ("trainer.resume_mode=disable", "learner", {"resume": "never"}),
        (f"{ROLLOUT}.name=hf", "rollout", {"engine": "transformers"}),
        (f"{ROLLOUT}.enforce_eager=True", "rollout", {"enforce_eager": True}),
        (f"{ROLLOUT}.dtype=float32", "model", {"dtype": "float32"}),
        ("algorithm.norm_adv_by_std_in_grpo=False", "algorithm", {"norm_adv_by_std_in_grpo": False}),
    ],
)
def test_values_are_converted(setting: str, section: str, expected: dict[str, Any]) -> None:
    assert expected.items() <= translated(setting)[section].items()


@pytest.mark.parametrize("setting", [f"{ROLLOUT}.val_kwargs.temperature=0", "trainer.save_freq=-1"])
def test_a_value_that_changes_nothing_is_noted(setting: str) -> None:
    translation = from_verl([setting])
    assert "eval" not in translation.config_tree
    assert any(setting in note for note in translation.notes)


def test_references_to_other_keys_are_followed() -> None:
    source = {
        "data": {"train_batch_size": 64, "gen_batch_size": "${data.train_batch_size}"},
        "actor_rollout_ref": {
            "_target_": "verl.Something",
            "actor": {"ppo_mini_batch_size": "${oc.select:nowhere.at_all, 16}"},
            "rollout": {"n": "${data.train_batch_size}", "name": "???"},
        },
    }
    tree = from_verl(source).config_tree
    assert tree["data"]["gen_batch_size"] == 64
    assert tree["learner"]["mini_batch_size"] == 16
    assert tree["rollout"] == {"n": 64}


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (["data.train_batch_size='8'"], "data.train_batch_size: must be a whole number, got '8'"),
        (["data.train_batch_size=[8]"], "data.train_batch_size: must be a whole number, got [8]"),
        (["data.train_batch_size=-8"], "data.train_batch_size: must be > 0, got -8"),
        (["data.shuffle=1"], "data.shuffle: must be true or false, got 1"),
        (
            ["actor_rollout_ref.actor.optim.lr=fast"],
            "actor_rollout_ref.actor.optim.lr: learner.lr: must be a number, got 'fast'",
        ),
        (
            ["actor_rollout_ref.actor.optim.betas=[0.9, 1.0]"],
            "actor_rollout_ref.actor.optim.betas: learner.betas.1: must be < 1, got 1.0",
        ),
        (["data.train_files=5"], "data.train_files: cannot be honoured, got 5: verl's own is of another type"),
        (
            ["trainer.test_freq=often"],
            "trainer.test_freq: cannot be honoured, got 'often': verl's own is of another type",
        ),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_by_verls_key(settings: list[str], line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_verl(["actor_rollout_ref.model.path=m", *settings])
    assert str(caught.value).splitlines() == [line]


def test_a_key_that_hydra_takes_out_is_not_given() -> None:
    tree = from_verl(["data.seed=3", "~data.seed", "~trainer.logger", "~trainer.project_name=x"]).config_tree
    assert "run" not in tree


def test_a_mapping_on_the_command_line_is_its_keys() -> None:
    for blank in ("", " "):
        cfg = f"{{enable:{blank}True,len:{blank}128,penalty_factor:{blank}0.5}}"
        tree = from_verl([f"+reward_model.reward_kwargs.overlong_buffer_cfg={cfg}"]).config_tree
        assert tree["reward"]["overlong_buffer"] == {"enable": True, "len": 128, "penalty_factor": 0.5}


@pytest.mark.parametrize("name", ["run-$(date +%F)", "${oc.env:USER}-run", "$NAME"])
def test_a_name_that_only_a_shell_knows_is_left_at_the_default(name: str) -> None:
    translation = from_verl([f"trainer.experiment_name={name}"])
    assert "run" not in translation.config_tree
    assert any("run.name keeps its default" in note for note in translation.notes)


def test_references_within_a_text_are_followed() -> None:
    tree = from_verl(
        {
            "trainer": {"project_name": "p", "experiment_name": "${trainer.project_name}-${data.train_batch_size}"},
            "data": {"train_batch_size": 8, "train_files": ["${actor_rollout_ref.model.path}/a.parquet"]},
            "actor_rollout_ref": {"model": {"path": "m"}},
        }
    ).config_tree
    assert tree["run"]["name"] == "p-8"
    assert tree["data"]["train_files"] == ["m/a.parquet"]
    with pytest.raises(ConfigError, match=r"model\.path: got .* not a plain reference"):
        from_verl({"actor_rollout_ref": {"model": {"path": "x${actor_rollout_ref.model.path}"}}})


def test_a_reference_in_a_circle_is_refused() -> None:
    lines = refusals("data.train_batch_size=${data.gen_batch_size}", "data.gen_batch_size=${data.train_batch_size}")
    assert all("write the value itself" in line for line in lines)


def test_nulls_leave_defaults_in_place() -> None:
    tree = translated("data.gen_batch_size=null", "algorithm.filter_groups.metric=null")
    assert "gen_batch_size" not in tree["data"]
    assert "metric" not in tree["algorithm"]["filter_groups"]


@pytest.mark.parametrize(
    ("switch", "inert"),
    [
        (f"{ACTOR}.use_kl_loss=False", f"{ACTOR}.kl_loss_coef=0.001"),
        ("algorithm.use_kl_in_reward=False", "algorithm.kl_ctrl.kl_coef=0.001"),
        ("algorithm.filter_groups.enable=False", "algorithm.filter_groups.metric=acc_of_mine"),
        ("algorithm.filter_groups.enable=False", "algorithm.filter_groups.max_num_gen_batches=10"),
        (f"{ACTOR}.kl_loss_coef=0.0", f"{ACTOR}.use_kl_loss=True"),
        ("algorithm.kl_ctrl.kl_coef=0", "algorithm.use_kl_in_reward=True"),
    ],
)
def test_what_is_switched_off_is_ignored_with_the_switch(switch: str, inert: str) -> None:
    for settings in ([switch, inert], [inert, switch]):
        notes = from_verl(settings).notes
        assert any(note.startswith(f"ignored, switched off by {switch}: ") and inert in note for note in notes), notes
    on = switch.replace("False", "True").replace("=0.0", "=0.5").replace("_coef=0", "_coef=0.5").replace("0.5.0", "0.5")
    if "kl" in inert:
        with pytest.raises(ConfigError, match="no KL term"):
            from_verl([on, inert])
