"""Recipes, environment and overrides become one checked configuration, or messages that say where and why not."""

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sluice.config.load import dump_config, load_config, parse_config
from sluice.config.problems import nearest_key, schema_keys
from sluice.config.schema import Config
from sluice.config.yaml_text import parse_yaml, print_yaml
from sluice.errors import ConfigError, SluiceError

RECIPE = """
model: {path: some/model}
data:
  train_files: [a.jsonl]
  train_batch_size: 8
learner:
  mini_batch_size: 4
  lr: 4e-4
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return path


def problems(path: Path | None, *overrides: str, **environ: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides=overrides, environ=environ)
    return str(caught.value).splitlines()


def leaf_keys() -> list[str]:
    keys = schema_keys()
    return [key for key in keys if not any(other.startswith(f"{key}.") for other in keys)]


def test_a_recipe_is_filled_up_with_defaults(recipe: Path) -> None:
    config = load_config(recipe)
    assert config.learner.lr == 4e-4
    assert config.data.train_files == ["a.jsonl"]
    assert config.algorithm.clip_ratio_high == 0.28


def test_later_layers_win(recipe: Path) -> None:
    environ = {"SLUICE__LEARNER__LR": "2e-4", "SLUICE__RUN__TOTAL_STEPS": "7", "PATH": "/bin", "SLUICE_CACHE": "x"}
    config = load_config(recipe, overrides=["learner.lr=1e-6"], environ=environ)
    assert config.learner.lr == 1e-6
    assert config.run.total_steps == 7
    assert load_config(recipe, environ=environ).learner.lr == 2e-4
    assert load_config(recipe).run.total_steps == Config.model_fields["run"].default.total_steps


def test_overrides_are_enough_without_a_recipe() -> None:
    config = load_config(None, overrides=["model.path=m", "data.train_files=[a.jsonl, b.parquet]"])
    assert config.data.train_files == ["a.jsonl", "b.parquet"]


def test_values_are_read_as_yaml(recipe: Path) -> None:
    overrides = ["learner.betas=[0.9, 0.95]", "algorithm.clip_ratio_c=null", "data.shuffle=false", "run.name='12'"]
    config = load_config(recipe, overrides=overrides)
    assert config.learner.betas == (0.9, 0.95)
    assert config.algorithm.clip_ratio_c is None
    assert config.data.shuffle is False
    assert config.run.name == "12"


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-6", 1e-6), ("-3E5", -3e5), ("1.e3", 1e3), (".5e-1", 0.05), ("4", 4), ("e5", "e5"), ("1e", "1e")],
)
def test_floats_need_no_dot(text: str, value: object) -> None:
    parsed = parse_yaml(text, where="x")
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.5_5", "0.5_5"),
        ("0.5_5.0", "0.5_5.0"),
        ("5_0", "5_0"),
        ("1:30", "1:30"),
        ("1:30.5", "1:30.5"),
        ("010", "010"),
        ("32_768", 32768),
        ("-7", -7),
        ("0", 0),
        ("0.5", 0.5),
        ("-.5", -0.5),
        ("5.", 5.0),
        ("-.inf", -math.inf),
        ("0x1f", 31),
    ],
)
def test_a_number_is_what_it_looks_like_and_anything_else_is_text(text: str, value: object) -> None:
    parsed = parse_yaml(text, where="x")
    assert parsed == value
    assert type(parsed) is type(value)


def test_two_bounds_are_not_taken_for_one_number(recipe: Path) -> None:
    key = "algorithm.rollout_correction.rollout_is_threshold"
    assert problems(recipe, f"{key}=0.5_5") == [f"override: {key}: must be a number, got '0.5_5'"]
    assert problems(recipe, f'{key}="0.5_5"') == [f"override: {key}: must be a number, got '0.5_5'"]


def test_a_message_names_the_layer_the_key_the_rule_and_the_value(recipe: Path) -> None:
    recipe.write_text(RECIPE.replace("4e-4", "-1"))
    assert problems(recipe) == [f"{recipe}: learner.lr: must be > 0, got -1"]
    assert problems(recipe, "learner.lr=-2") == ["override: learner.lr: must be > 0, got -2"]
    assert problems(recipe, SLUICE__LEARNER__LR="-3") == ["SLUICE__LEARNER__LR: learner.lr: must be > 0, got -3"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("rollout.n=1.5", "rollout.n: must be a whole number, got 1.5"),
        ("rollout.n=true", "rollout.n: must be a whole number, got True"),
        ("rollout.n='8'", "rollout.n: must be a whole number, got '8'"),
        ("learner.lr=fast", "learner.lr: must be a number, got 'fast'"),
        ("data.shuffle=1", "data.shuffle: must be true or false, got 1"),
        ("model.path=7", "model.path: must be text, got 7"),
        ("data.template=chat", "data.template: must be 'model' or 'none', got 'chat'"),
        ("data.train_files=a.jsonl", "data.train_files: must be a list, got 'a.jsonl'"),
        ("data.train_files=[]", "data.train_files: must have at least 1 items, got []"),
        ("algorithm.clip_ratio_low=1", "algorithm.clip_ratio_low: must be < 1, got 1"),
        ("algorithm.filter_groups=on", "algorithm.filter_groups: must be a section with keys of its own, got True"),
        ("algorithm.use_kl_loss=true", "algorithm.use_kl_loss: must be False, got True; DAPO has no KL term; "),
        ("model.target_modules=-1", "model.target_modules: must be `all-linear` or list of text, got -1"),
        ("model.target_modules=[7]", "model.target_modules: must be `all-linear` or list of text, got [7]"),
        ("run.name='a b'", "run.name: must match ^[A-Za-z0-9._-]+$, got 'a b'"),
    ],
)
def test_wrong_values_are_refused_in_plain_words(recipe: Path, override: str, message: str) -> None:
    (line,) = problems(recipe, override)
    assert line.startswith(f"override: {message}")


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("learner.betas=[0.9]", "override: learner.betas: must be a list of 2 x number >= 0 and < 1, got [0.9]"),
        ("learner.betas=[0.9, 1]", "override: learner.betas.1: must be < 1, got 1"),
        ("run.seed=9223372036854775808", "override: run.seed: must be <= 9223372036854775807, got 9223372036854775808"),
        ("run.name=" + "x" * 201, f"override: run.name: must have at most 200 characters, got '{'x' * 56}..."),
        ("data.train_files={a: b}", "override: data.train_files: must be a list, got {'a': 'b'}"),
        (
            "reward.routes={a.b: {grader: numeric, weight: .inf}}",
            "override: reward.routes.a.b.0.weight: must be a finite number, got inf",
        ),
        (
            "reward.routes={a: [exact, {grader: numeric, setings: {}}]}",
            "override: reward.routes.a.1.setings: is not a known key; did you mean settings?",
        ),
        (
            "reward.routes={a: {grader: numeric, zzz: 1}}",
            "override: reward.routes.a.0.zzz: is not a known key; known here are grader, settings, weight, name, network",
        ),
        ("run.dir=\0", "override run.dir: line 1: not valid YAML: the character U+0000 is not allowed"),
        ("run.name=!!binary aGk=", "override run.name: must hold text, numbers, true, false, null, lists and mappings"),
    ],
)
def test_a_refusal_names_the_layer_the_place_and_the_rule(recipe: Path, override: str, line: str) -> None:
    (told,) = problems(recipe, override)
    assert told.startswith(line)


def test_a_layer_that_puts_a_section_for_a_value_is_the_one_that_is_named(recipe: Path) -> None:
    assert problems(recipe, "learner.lr=1", "learner.lr={a: 1}") == [
        "override: learner.lr: must be a number, got {'a': 1}"
    ]


def test_a_recipe_with_dotted_keys_is_told_to_nest_them(tmp_path: Path) -> None:
    path = tmp_path / "dotted.yaml"
    path.write_text("model: {path: m}\ndata: {train_files: [a.jsonl]}\nlearner.lr: 1e-6\n")
    assert problems(path) == [
        f"{path}: learner.lr: is not a known key; a recipe nests its keys, write learner: {{lr: ...}}"
    ]


def test_merge_keys_and_dates_are_read_and_a_key_that_is_no_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "merged.yaml"
    head = "model: {path: m}\ndata: &data {train_files: [a.jsonl], max_prompt_length: 7}\n"
    path.write_text("model: {path: m}\ndata:\n  <<: {train_files: [a.jsonl], shuffle: false}\n  shuffle: true\n")
    assert load_config(path).data.shuffle
    path.write_text(head + "run: {name: 2024-13-01}\n")
    assert load_config(path).run.name == "2024-13-01"
    path.write_text(head + "learner:\n  <<: {lr: 1}\n  <<: {lr: 2}\n")
    assert problems(path) == [f"{path}: line 5, column 3: not valid YAML: the key '<<' stands twice"]
    path.write_text(head + "learner: {[1]: 2}\n")
    assert problems(path) == [f"{path}: line 3, column 11: not valid YAML: a key must be text"]
    path.write_bytes(head.encode() + b"\n# \x01\n")
    assert problems(path) == [f"{path}: line 4: not valid YAML: the character U+0001 is not allowed"]


@pytest.mark.parametrize("name", ["SLUICE__", "SLUICE__LEARNER__", "SLUICE____LR"])
def test_a_variable_without_a_key_is_named(recipe: Path, name: str) -> None:
    assert problems(recipe, **{name: "1"}) == [f"{name}: must name a key, SLUICE__SECTION__KEY"]


def test_all_problems_are_told_at_once(recipe: Path) -> None:
    lines = problems(recipe, "learner.lr=-1", "rollout.n=x", "nonsense.key=1")
    assert [line.split(": ")[1] for line in lines] == ["rollout.n", "learner.lr", "nonsense"]


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    path = tmp_path / "empty.yaml"
    path.write_text("")
    assert problems(path) == [f"{path}: model: must be given", f"{path}: data: must be given"]


def test_settings_that_do_not_fit_together_name_the_layer_of_the_key(recipe: Path) -> None:
    (line,) = problems(recipe, "rollout.n=1")
    assert line.startswith("override: rollout.n: must be >= 2 while algorithm.filter_groups.enable is true, got 1")
    (line,) = problems(recipe, "data.val_files=[a.jsonl]")
    assert line.startswith("override: data.val_files: must not share files with train_files")


def test_what_sections_refuse_by_themselves_is_told_at_once(recipe: Path) -> None:
    lines = problems(recipe, "data.gen_batch_size=2", "launch.learner_nnodes=2", "network.bind=10.1/99", "run.seed=-1")
    keys = ["run.seed", "data.gen_batch_size", "launch.learner_rdzv_endpoint", "network.bind"]
    assert [line.split(": ")[1] for line in lines] == keys


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("algorithm.rollout_correction.rollout_is=token", "rollout_is: needs algorithm.proximal: recompute"),
        ("algorithm.proximal=recompute", "set algorithm.rollout_correction.rollout_is: token"),
        ("algorithm.loss_mode=reinforce", "set algorithm.rollout_correction.rollout_is: sequence or token"),
        ("launch.learner_nnodes=2", "learner_rdzv_endpoint: must be HOST:PORT"),
        ("weights.lora=adapter", "set model.lora_rank"),
    ],
)
def test_settings_that_need_another_one_say_which(recipe: Path, override: str, message: str) -> None:
    (line,) = problems(recipe, override)
    assert message in line


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["loss_mode=dppo_kl", "proximal=recompute"],
            "loss_mode: dppo_kl compares the learner with the policy that sampled",
        ),
        (["loss_mode=ipo", "proximal=recompute"], "set algorithm.proximal: rollout"),
        (["loss_mode=sapo", "rollout_correction.rollout_is=token"], "the gated ratio is the importance weight already"),
        (
            ["loss_mode=dppo_tv", "rollout_correction.rollout_is=token"],
            "the truncated ratio is the importance weight already",
        ),
        (["adv_estimator=maxrl", "filter_groups.metric=score"], "filter_groups.metric: must be acc with"),
        (["rollout_correction.opsm_delta=-1"], "opsm_delta"),
        (["tau_pos=0"], "tau_pos"),
    ],
)
def test_losses_and_corrections_that_exclude_each_other_say_why(
    recipe: Path, overrides: list[str], message: str
) -> None:
    overrides = [f"algorithm.{override}" for override in overrides]
    (line,) = problems(recipe, "coordinator.max_staleness=0", *overrides)
    assert message in line


def test_maxrl_is_refused_where_rewards_are_shaped(recipe: Path) -> None:
    shaped = ["reward.overlong_buffer.enable=true", "reward.overlong_buffer.len=1"]
    (line,) = problems(recipe, "algorithm.adv_estimator=maxrl", *shaped)
    assert "reward.overlong_buffer.enable: must be false with algorithm.adv_estimator: maxrl" in line


def test_deltas_are_refused_where_every_push_is_a_whole_version(recipe: Path) -> None:
    (line,) = problems(recipe, "weights.encoding=delta", "weights.backend=file")
    assert "weights.encoding: delta needs weights.backend auto, gloo, nccl or grpc, got file" in line
    (line, *_) = problems(recipe, "weights.encoding=gaps")
    assert "weights.encoding" in line
    assert "'auto', 'dense' or 'delta'" in line


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("learner.ppo_mini_batch_size", "learner.mini_batch_size"),
        ("rollout.tensor_model_parallel_size", "rollout.tensor_parallel_size"),
        ("algorithm.max_staleness", "coordinator.max_staleness"),
        ("lerner", "learner"),
        ("algorithm.filter_groups.enabled", "algorithm.filter_groups.enable"),
    ],
)
def test_an_unknown_key_comes_with_the_one_that_was_meant(recipe: Path, key: str, meant: str) -> None:
    assert problems(recipe, f"{key}=1") == [f"override: {key}: is not a known key; did you mean {meant}?"]


def test_an_unknown_key_with_no_near_miss_lists_what_is_known(recipe: Path) -> None:
    (line,) = problems(recipe, "model.zzz=1")
    assert (
        line == "override: model.zzz: is not a known key; known here are path, dtype, lora_rank, lora_alpha, renderer, "
        "target_modules"
    )


@pytest.mark.parametrize("key", leaf_keys())
def test_one_typo_in_any_key_is_found_and_mended(key: str) -> None:
    section, _, name = key.rpartition(".")
    typo = f"{section}.{name[0]}{name[2:]}{name[1]}" if len(name) > 2 else f"{section}.{name}s"
    if typo == key:
        typo = f"{key}_x"
    assert nearest_key(typo) == key or typo in schema_keys()


def test_text_that_is_no_recipe_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    for text, expected in [
        ("- a\n- b", "must be a mapping of sections"),
        ("model: {path: a}\nmodel: {path: b}", "line 2, column 1: not valid YAML: the key 'model' stands twice"),
        ("model: [", "line 1, column 9: not valid YAML"),
    ]:
        path.write_text(text)
        (line,) = problems(path)
        assert line.startswith(f"{path}: {expected}")
    assert "cannot be read" in problems(tmp_path / "none.yaml")[0]


@pytest.mark.parametrize("override", ["learner.lr", "=1", ""])
def test_an_override_needs_a_key_and_a_value(recipe: Path, override: str) -> None:
    assert problems(recipe, override) == [f"override: must be KEY=VALUE, got {override!r}"]


def test_a_config_error_is_a_value_error_and_a_sluice_error(recipe: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(recipe, overrides=["learner.lr=0"])
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, SluiceError)


def test_a_dumped_configuration_reads_back_equal_and_is_stable(recipe: Path) -> None:
    config = load_config(recipe, overrides=["reward.routes={my/set: math_dapo}", "algorithm.clip_ratio_c=null"])
    text = dump_config(config)
    assert parse_config(text, where="registered") == config
    assert dump_config(parse_config(text, where="registered")) == text
    assert list(parse_yaml(text, where="x")) == list(Config.model_fields)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_any_number_survives_being_written(number: float) -> None:
    assert parse_yaml(print_yaml({"x": number}), where="x") == {"x": number}


def test_a_recipe_in_verls_form_is_translated(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "verl.yaml"
    path.write_text(
        "actor_rollout_ref: {model: {path: m}, rollout: {n: 8}, actor: {ppo_mini_batch_size: 16}}\n"
        "data: {train_files: a.parquet, train_batch_size: 64}\n"
        "algorithm: {adv_estimator: grpo}\n"
    )
    config = load_config(path, overrides=["run.total_steps=5"])
    assert (config.rollout.n, config.learner.mini_batch_size, config.data.train_batch_size) == (8, 16, 64)
    assert config.run.total_steps == 5
    assert any("run.total_steps" in message for message in caplog.messages)


def test_a_recipe_may_begin_with_a_byte_order_mark_and_must_be_utf_8(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE, encoding="utf-8-sig")
    assert load_config(path).learner.lr == 4e-4
    path.write_bytes(RECIPE.encode() + "# caf\u00e9\n".encode("latin-1"))
    assert problems(path) == [f"{path}: line 9: must be UTF-8, got the byte 0xe9"]


def test_a_tilde_is_the_home_folder_in_every_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    paths = ["model.path=~/m", "run.dir=~/runs", "network.credentials=~/c", "learner.resume=~/step-3"]
    routes = "reward.routes={mine: '~/graders/mine.py:score'}"
    config = load_config(None, overrides=[*paths, "data.train_files=[~/a.jsonl]", routes])
    assert (config.model.path, config.run.dir, config.network.credentials) == (
        *("/home/ann/m", "/home/ann/runs", "/home/ann/c"),
    )
    assert config.learner.resume == "/home/ann/step-3"
    assert config.reward.routes["mine"][0].grader == "/home/ann/graders/mine.py:score"
    assert parse_config(dump_config(config), where="dump") == config


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        ("{aime: {files: [a.parquet], top_p: 0}}", "eval.sets.aime.top_p: must be > 0, got 0"),
        ("{aime: {files: [a.parquet], top_p: 1.5}}", "eval.sets.aime.top_p: must be <= 1, got 1.5"),
        ("{aime: {files: [a.parquet], n: 0}}", "eval.sets.aime.n: must be > 0, got 0"),
        ("{aime: {files: [a.parquet], n: 5000}}", "eval.sets.aime.n: must be <= 4096, got 5000"),
        ("{aime: {files: []}}", "eval.sets.aime.files: must have at least 1 items, got []"),
        ("{aime: {}}", "eval.sets.aime.files: must be given"),
        ("{aime: {files: [a.parquet], topp: 0.7}}", "eval.sets.aime.topp: is not a known key; did you mean top_p?"),
        ("{AIME-24: {files: [a.parquet]}}", "got 'AIME-24'"),
        ("{default: {files: [a.parquet]}}", "got 'default'"),
        ("{aime: {files: [a.jsonl]}}", "eval.sets.aime.files: must not share files with data.train_files"),
        ("[a.parquet]", "eval.sets: must be a mapping, got ['a.parquet']"),
        ("{" + ", ".join(f"s{i}: {{files: [a]}}" for i in range(17)) + "}", "eval.sets: must be at most 16, got 17"),
        ("{aime: {files: [a]}, aime: {files: [b]}}", "the key 'aime' stands twice"),
    ],
)
def test_an_evaluation_set_that_cannot_be_is_one_line(recipe: Path, sets: str, said: str) -> None:
    [line] = problems(recipe, f"eval.sets={sets}")
    assert said in line


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["data.train_files=[mixadd3:train]"],
            "data.sampler: difficulty draws prompts again, and mixadd3:train makes new ones",
        ),
        (
            ["data.train_files=[reasoning-gym:chain_sum]"],
            "reasoning-gym:chain_sum makes new ones without end; take files",
        ),
        (["data.shuffle=false"], "data.shuffle: false asks for the stored order (a curriculum); set one of the two"),
        (
            ["rollout.n=1", "algorithm.filter_groups.enable=false"],
            "samples are to differ, and rollout.n is 1; set rollout.n: 2",
        ),
        (
            ["algorithm.filter_groups.metric=seq_reward"],
            "algorithm.filter_groups.metric is seq_reward; set that to acc",
        ),
    ],
)
def test_a_sampler_that_draws_again_is_refused_where_it_cannot_keep_its_word(
    recipe: Path, overrides: list[str], said: str
) -> None:
    (line,) = problems(recipe, "data.train_files=[sums.jsonl]", "data.sampler=difficulty", *overrides)
    assert said in line
    assert "data.sampler: shuffle" in line
    load_config(recipe, overrides=["data.train_files=[sums.jsonl]", "data.sampler=difficulty"])
    (line,) = problems(recipe, "data.sampler=difficult")
    assert "data.sampler: must be 'shuffle' or 'difficulty', got 'difficult'" in line
