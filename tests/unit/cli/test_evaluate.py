"""`sluice evaluate --model`: which configuration the flags make, and what is refused before anything starts."""

import argparse
import json
from pathlib import Path

import pytest

import sluice.cli.main
from sluice.cli import evaluate
from sluice.cli.model_evaluation import evaluation_config, print_table, write_json
from sluice.config.evaluation_sets import evaluation_sets
from sluice.errors import ConfigError
from sluice.v1 import coordinator_pb2 as pb

RECIPE = """
model: {path: elsewhere}
data: {train_files: [train.jsonl], val_files: [VAL], train_batch_size: 8, max_prompt_length: 32, max_response_length: 32}
eval: {n: 4, sets: {one: {files: [VAL], n: 16, top_p: 0.7}, two: {files: [VAL], greedy: false}}}
run: {loggers: [tensorboard]}
launch: {rollout_replicas: 0, reward_replicas: 0}
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"max_position_embeddings": 4096, "vocab_size": 8}))
    (folder / "tokenizer.json").write_text("{}")
    (tmp_path / "val.jsonl").write_text("")
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace("VAL", str(tmp_path / "val.jsonl")))
    return folder


def parsed(*words: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    evaluate.add_parser(parser.add_subparsers())
    return parser.parse_args(["evaluate", *map(str, words)])


def test_without_a_recipe_every_row_is_evaluated_within_the_models_context(model: Path) -> None:
    config = evaluation_config(
        parsed("--model", model, "--data", "a.jsonl", "--data", "b.jsonl", "-n", 3, "--top-p", 0.5)
    )
    [only] = evaluation_sets(config)
    assert (only.name, only.files, only.n, only.top_p, only.prompts) == ("", ("a.jsonl", "b.jsonl"), 3, 0.5, 1_000_000)
    assert config.data.max_prompt_length + config.data.max_response_length == 4096
    assert (config.network.coordinator_port, config.launch.rollout_replicas) == (0, 1)
    endless = evaluation_config(parsed("--model", model, "--data", "mixadd3:fresh"))
    assert evaluation_sets(endless)[0].prompts == 256


def test_a_recipe_brings_its_sets_and_the_flags_hold_for_each_of_them(model: Path) -> None:
    recipe = model.parent / "recipe.yaml"
    config = evaluation_config(parsed("--model", model, "-c", recipe))
    assert [(one.label, one.n, one.top_p) for one in evaluation_sets(config)] == [
        ("default", 4, 1.0),
        ("one", 16, 0.7),
        ("two", 4, 1.0),
    ]
    assert (config.run.loggers, config.launch.reward_replicas, config.model.path) == ([], 1, str(model))
    chosen = evaluation_config(parsed("one", "two", "--model", model, "-c", recipe, "-n", 2, "--no-greedy"))
    assert [(one.name, one.n, one.top_p, one.greedy) for one in evaluation_sets(chosen)] == [
        ("one", 2, 0.7, False),
        ("two", 2, 1.0, False),
    ]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model", "MODEL"], "nothing to evaluate"),
        (["--model", "gone", "--data", "a.jsonl"], "gone is not a directory"),
        (["--model", "MODEL", "--data", "a.jsonl", "--top-p", "1.5"], "eval.top_p: must be <= 1, got 1.5"),
        (["--model", "MODEL", "--data", "a.jsonl", "--temperature", "0"], "eval.temperature: must be >= 0.01, got 0"),
        (
            ["three", "--model", "MODEL", "-c", "RECIPE"],
            "'three' is no evaluation set here; there are default, one, two",
        ),
        (["--data", "a.jsonl"], "--data is for --model DIR"),
        (["--set", "eval.n=1"], "--set is for --model DIR"),
        (["--json", "gone/x.json"], "gone is no folder"),
        (["--json", "MODEL"], "is a folder"),
        (["--parquet", "x"], "a run keeps them in RUN/evaluations"),
        (["--model", "MODEL", "--data", "a.jsonl", "--json", "gone/x.json"], "gone is no folder"),
        (["--model", "MODEL", "--data", "a.jsonl", "--run-dir", "MODEL"], "--run-dir must be a new folder"),
    ],
)
def test_bad_usage_is_one_line_and_exit_code_2(
    model: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"MODEL": str(model), "RECIPE": str(model.parent / "recipe.yaml")}
    assert sluice.cli.main.main(["evaluate", *(places.get(word, word) for word in words)]) == 2
    [line] = [text for text in capsys.readouterr().err.splitlines() if not text.startswith("vLLM")]
    assert said in line


@pytest.mark.parametrize("text", ["nan", "inf", "-1", "0", "1e400", "x", ""])
def test_what_is_no_duration_is_bad_usage(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["evaluate", "--timeout-s", text], ["drain", "--timeout-s", text], ["certs", "d", "--days", text]):
        with pytest.raises(SystemExit, match="2"):
            sluice.cli.main.main(command)
        assert command[-2] in capsys.readouterr().err


def test_a_flag_is_not_taken_for_another_that_begins_like_it(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        sluice.cli.main.main(["evaluate", "--n", "4"])  # --no-greedy
    assert "unrecognized arguments: --n" in capsys.readouterr().err


def test_a_set_whose_file_is_gone_is_named(model: Path) -> None:
    (model.parent / "val.jsonl").unlink()
    with pytest.raises(ConfigError, match=r"eval\.sets\.one\.files: no such file"):
        evaluation_config(parsed("--model", model, "-c", model.parent / "recipe.yaml"))


def test_the_table_and_the_json_say_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = pb.Evaluation(set="one", avg_at_n=0.25, pass_at_n=0.5, greedy=float("nan"), n=16, prompts=30, maj_at_n=0.5)
    one.avg_interval.CopyFrom(pb.Interval(low=0.125, high=0.5))
    print_table([one])
    line = capsys.readouterr().out.splitlines()[1].split()
    assert line == ["one", "30", "16", ".25", "[.12,", ".50]", ".50", ".50", "–", "0", "0", "0:00"]
    write_json(tmp_path / "x.json", [one])
    [written] = json.loads((tmp_path / "x.json").read_text())["evaluations"]
    assert (written["set"], written["avg"], written["avg_interval"], written["greedy"]) == (
        "one",
        0.25,
        [0.125, 0.5],
        None,
    )
    assert written["tool_use"] is None
    one.tool_use = 0.75
    print_table([one])
    heads, values = capsys.readouterr().out.splitlines()
    assert "greedy  tool use  tokens" in heads
    assert values.split()[8:11] == ["–", ".75", "0"]
