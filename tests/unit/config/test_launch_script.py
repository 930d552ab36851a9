"""Settings out of launch scripts as they stand; what only a shell can know is refused by name where it matters."""

from collections.abc import Mapping

import pytest

from sluice.cli.config import read_settings
from sluice.cli.main import main
from sluice.config.launch_script import looks_like_script, settings_of
from sluice.config.verl import from_verl
from sluice.errors import ConfigError

SCRIPT = """#!/usr/bin/env bash
set -xeuo pipefail

project='sums'                      # a comment behind a value
name="run-${SIZE:-7B}"
max_prompt=$((1024 * 2))
max_response=$((max_prompt * 10))
HOME_OF_DATA=${HOME_OF_DATA:-"${HOME}/verl"}
train=$HOME_OF_DATA/train.parquet
files="['$train', '$HOME/more.parquet']"
common=(
    data.train_batch_size=512       # groups
    actor_rollout_ref.rollout.n=16
)
common+=(algorithm.adv_estimator=grpo)
export NODES=$(nproc)

# python3 -m verl.trainer.main_ppo data.seed=3
PYTHONUNBUFFERED=1 ray job submit --no-wait \\
    -- python3 -m recipe.dapo.main_dapo --config-name=dapo \\
    "${common[@]}" \\
    data.train_files="$files" \\
    data.max_prompt_length=${max_prompt} \\
    # data.shuffle=False \\
    data.max_response_length="${max_response}" \\
    actor_rollout_ref.model.path=~/models/m \\
    trainer.logger='["console","wandb"]' \\
    trainer.nnodes=${NODES} \\
    trainer.experiment_name=$name $@ 2>&1 | tee "$project.log"
"""


def read(text: str, **environ: str) -> list[str]:
    return settings_of(text, where="run.sh", environ={"HOME": "/home/ann", **environ})


def test_a_script_is_read_as_it_stands() -> None:
    assert read(SCRIPT) == [
        "data.train_batch_size=512",
        "actor_rollout_ref.rollout.n=16",
        "algorithm.adv_estimator=grpo",
        "data.train_files=['/home/ann/verl/train.parquet', '/home/ann/more.parquet']",
        "data.max_prompt_length=2048",
        "data.max_response_length=20480",
        "actor_rollout_ref.model.path=~/models/m",
        'trainer.logger=["console","wandb"]',
        "trainer.nnodes=$(nproc)",
        "trainer.experiment_name=run-7B",
    ]
    assert read(SCRIPT, SIZE="32B", HOME_OF_DATA="/data")[-1] == "trainer.experiment_name=run-32B"


@pytest.mark.parametrize(
    ("before", "word", "expected"),
    [
        ("", "data.seed=1", "data.seed=1"),
        ("", "+data.seed=1", "+data.seed=1"),
        ("", "'data.seed=1'", "data.seed=1"),
        ("", '"data.seed=1"', "data.seed=1"),
        ("", "data.train_files=$HOME/x.parquet", "data.train_files=/home/ann/x.parquet"),
        ("", "data.train_files=${HOME}/x.parquet", "data.train_files=/home/ann/x.parquet"),
        ("", "data.train_files='$HOME/x.parquet'", "data.train_files=$HOME/x.parquet"),
        ("X=a\\ b", "data.train_files=$X", "data.train_files=a b"),
        ("X=3; Y=$X", "data.seed=$Y", "data.seed=3"),
        ("X=3 Y=4", "data.seed=$X$Y", "data.seed=34"),
        ("X=", "data.seed=${X:-5}", "data.seed=5"),
        ("X=", "data.seed=${X-5}", "data.seed="),
        ("", "data.seed=${1:-5}", "data.seed=5"),
        ("", 'data.seed="${X:=5}"', "data.seed=5"),
        ("X=2", "data.seed=$(( (X + 1) * 2 ))", "data.seed=6"),
        ("X=7", "data.seed=$((X / 2))", "data.seed=3"),
        ("", "data.train_files=\\'a\\'", "data.train_files='a'"),
        ("declare X=4", "data.seed=$X", "data.seed=4"),
        ("X=3\nX=4", "data.seed=$X", "data.seed=4"),
        ("X=3\nif true; then X=3; fi", "data.seed=$X", "data.seed=3"),
        ("function now() {\n  date '+%s'\n}\nX=3\nX=4", "data.seed=$X", "data.seed=4"),
        ("cat <<EOF > a.txt\nit's $X data.seed=9\nEOF\nX=3", "data.seed=$X", "data.seed=3"),
        ("echo \"it's\"  # don't\nX=3", "data.seed=$X", "data.seed=3"),
        ('A=(data.seed=3)\nB=("${A[@]}")', '"${B[@]}"', "data.seed=3"),
        ("ALL='data.seed=3'", "$ALL", "data.seed=3"),
        ("pip install 'a>=1' > /dev/null 2>&1", "data.seed=3", "data.seed=3"),
        ("", "$UNSET_EXTRAS data.seed=3", "data.seed=3"),
        ("", "${UNSET:+data.shuffle=$UNSET} data.seed=3", "data.seed=3"),
        ("X=3", "${X:+data.seed=$X}", "data.seed=3"),
        ("ARGS=''\nARGS+='data.seed=3 '", "$ARGS", "data.seed=3"),
        ('ARGS="\\\n data.seed=3 \\\n"', "$ARGS", "data.seed=3"),
        ('echo "with data.seed=4"\necho data.seed=4', "data.seed=3", "data.seed=3"),
        ("N=8", "data.seed=${#N}", "data.seed=1"),
        ("A=(1 2 3)", "data.seed=${A[1]}", "data.seed=2"),
        ("A=(1 2 3)\ni=1", "data.seed=${A[$i]}", "data.seed=2"),
        ("A=(1 2 3)", "data.seed=${A[7]:-3}", "data.seed=3"),
        ("A=(1 2 3)", "data.seed=${#A[@]}", "data.seed=3"),
        ("((X = 2 + 1))", "data.seed=$X", "data.seed=3"),
        ("declare -a A=(data.seed=3)", '"${A[@]}"', "data.seed=3"),
        ("declare -i -r X=3", "data.seed=$X", "data.seed=3"),
        ("typeset X=3", "data.seed=$X", "data.seed=3"),
        ("export -- X=3", "data.seed=$X", "data.seed=3"),
        (': "${X:=3}"', "data.seed=$X", "data.seed=3"),
        (": ${X:=3} ${Y:=$X}", "data.seed=$Y", "data.seed=3"),
        ("X=3", "data.seed=${X:?must be set}", "data.seed=3"),
        ("((X=2, Y=X+1))", "data.seed=$Y", "data.seed=3"),
        ('let "X=1" "X+=2"', "data.seed=$X", "data.seed=3"),
        ("if (( 1 )); then X=3; fi\nX=3", "data.seed=$X", "data.seed=3"),
        ("for ((i=0; i<3; i++)); do echo $i; done", "data.seed=3", "data.seed=3"),
        ("", "data.seed=$((2**3 << 1))", "data.seed=16"),
        ("", "~data.seed", "~data.seed"),
        ("", "~trainer.logger=console", "~trainer.logger=console"),
        ("python3 prepare.py out.folder=x", "data.seed=3", "data.seed=3"),
        ("P=$(which python3)\n$P -m verl.trainer.main_ppo data.seed=3; exit 0", "x", None),
    ],
)
def test_words_are_expanded_as_a_shell_expands_them(before: str, word: str, expected: str) -> None:
    assert read(f"{before}\npython3 -m verl.trainer.main_ppo {word}\n") == [expected or "data.seed=3"]


@pytest.mark.parametrize(
    "end",
    [
        "$@",
        '"$@"',
        "${@:1}",
        "$*",
        "2>&1 | tee x.log",
        "> out.txt",
        ">> a 2> b",
        "2>&1 &",
        "&& echo done",
        "; exit 0",
        "|| true",
        "# x=1",
        "\\",
    ],
)
def test_what_follows_the_settings_ends_nothing(end: str) -> None:
    assert read(f"python3 -m verl.trainer.main_ppo data.seed=1 data.shuffle=true {end}\n") == [
        "data.seed=1",
        "data.shuffle=true",
    ]
    assert read(f"data.seed=1 \\\ndata.shuffle=true {end}\n") == ["data.seed=1", "data.shuffle=true"]


@pytest.mark.parametrize(
    ("before", "value"),
    [
        ("", "$UNKNOWN/m"),
        ("", "${UNKNOWN}/m"),
        ("", "$1"),
        ("", "$(ls)"),
        ("", "`ls`"),
        ("X=$(ls)", "$X"),
        ("X=$Y/m", "$X"),
        ("for X in 1 2; do", "$X"),
        ("X=a\nif true; then X=b; fi", "$X"),
        ("X=abc", "${X%c}"),
        ("if true; then X=b; fi", "$X"),
        ('[ -n "$1" ] && X=b', "$X"),
        ("test -d /data || X=b", "$X"),
        ("X=a; case $1 in b) X=b;; esac", "$X"),
        ("X=1; ((X++))", "$X"),
        ("read -r X < file", "$X"),
        ("IFS=, read -ra X <<< a,b", "$X"),
        ("printf -v X %s a", "$X"),
        ("X=a; unset X", "$X"),
        ("if true; then : ${X:=b}; fi", "$X"),
        ("", "${X:?must be set}"),
        ("X=a\nif true; then ((X=1)); fi", "$X"),
        ("", "$((2**99))"),
        ("", "$((1 << -1))"),
        ("", "$((1 > 0 ? 8 : 4))"),
        ("", "${A[0]}"),
        ("A=(1)", "${A[x]}"),
        ("A=(1)", "${A[i+2]:-0}"),
        ("A=$(ls)", "${A[0]:-0}"),
        ("", '"{a: $Q}"'),
    ],
)
def test_what_only_a_shell_can_know_is_refused_by_name_unless_it_makes_no_difference(before: str, value: str) -> None:
    script = f"{before}\npython3 -m verl.trainer.main_ppo data.train_files=[a] KEY={value}"
    with pytest.raises(ConfigError, match=r"^actor_rollout_ref\.model\.path: got .*write the value itself$"):
        from_verl(read(script.replace("KEY", "actor_rollout_ref.model.path")))
    assert from_verl(read(script.replace("KEY", "trainer.nnodes")))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("#!/bin/bash\necho hello\n", "run.sh: has no command with settings of verl"),
        (
            "if true; then MORE=(a.b=1); fi\npython3 x data.seed=1 ${MORE[@]}",
            "run.sh: .*MORE.*: only a shell can know it",
        ),
        (
            'if true; then MORE=(a.b=1); fi\npython3 x data.seed=1 "${MORE[@]}"',
            "run.sh: .*MORE.*: only a shell can know it",
        ),
        (
            "MORE=(a.b=1); read -ra MORE < f\npython3 x data.seed=1 ${MORE[@]}",
            "run.sh: .*MORE.*: only a shell can know it",
        ),
        ('mapfile -t MORE < file\npython3 x data.seed=1 "${MORE[@]}"', "run.sh: .*MORE.*: only a shell can know it"),
        ("MORE=$(cat more)\npython3 x data.seed=1 $MORE", r"run.sh: \$\(cat more\): only a shell can know it"),
        ("python a.py data.seed=1\npython b.py data.seed=2\n", "run.sh: has 2 commands with settings of verl"),
    ],
)
def test_a_script_without_one_launch_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read(text)


@pytest.mark.parametrize("torn", ["'", '"', "$(", "${", "`", "X=(", "$((", "\\", "a=${b", "<<EOF\nx\nEOF"])
def test_a_script_that_is_torn_is_no_traceback(torn: str) -> None:
    assert read(f"python3 -m verl data.seed=1\n{torn}") == ["data.seed=1"]


def test_the_command_reads_a_script(
    tmp_path: object, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    path = f"{tmp_path}/run.sh"
    with open(path, "w", encoding="utf-8") as file:
        file.write(SCRIPT)
    assert main(["config", "from-verl", path]) == 0
    out, err = capsys.readouterr()
    assert "n: 16" in out
    assert "- /home/ann/more.parquet" in out
    assert "trainer.nnodes" in err
    assert isinstance(read_settings("data.seed: 1", where="f"), Mapping)


@pytest.mark.parametrize(
    "script",
    [
        "srun -N 2 bash -c 'cd /x && python3 -m verl.trainer.main_ppo data.seed=3 trainer.nnodes=2'",
        'docker exec box bash -lc "python3 -m verl.trainer.main_ppo data.seed=$X trainer.nnodes=2"',
        'ssh host "python3 -m verl.trainer.main_ppo data.seed=3 trainer.nnodes=2"',
        'CMD="python3 -m verl.trainer.main_ppo data.seed=3 trainer.nnodes=2"\n$CMD',
        'CMD="python3 -m verl.trainer.main_ppo data.seed=3 trainer.nnodes=2"\neval "$CMD"',
        'CMD=(python3 -m verl.trainer.main_ppo data.seed=3 trainer.nnodes=2)\n"${CMD[@]}"',
        "uv run -m recipe.dapo.main_dapo data.seed=3 trainer.nnodes=2",
        "accelerate launch -m verl.trainer.main_ppo data.seed=3 trainer.nnodes=2",
    ],
)
def test_a_command_is_found_in_whatever_starts_it(script: str) -> None:
    text = f"export X=3\n{script}\n"
    assert read(text) == ["data.seed=3", "trainer.nnodes=2"]
    assert looks_like_script(script)


def test_a_file_of_settings_that_is_not_read_is_said(caplog: pytest.LogCaptureFixture) -> None:
    read("python3 -m verl.trainer.main_ppo --config-path=/mine --config-name my_trainer data.seed=3")
    assert [record.getMessage().split(": ")[1] for record in caplog.records] == [
        "--config-path=/mine",
        "--config-name my_trainer",
    ]


@pytest.mark.parametrize("value", ["$HOME/x.parquet", "['$HOME/a', b]", "${VAR}", "`ls`", "$(ls)", "$@"])
def test_shell_syntax_in_a_setting_is_refused_by_name(value: str) -> None:
    with pytest.raises(ConfigError, match=r"^data\.train_files: got "):
        from_verl([f"data.train_files={value}", "actor_rollout_ref.model.path=m"])


@pytest.mark.parametrize("text", ["# python3 x\ndata:\n  seed: 1\n", "data.seed: 1\n# X=1\n", "- data.seed=1\n"])
def test_yaml_is_not_taken_for_a_script(text: str) -> None:
    assert from_verl(read_settings(text, where="f")).config_tree["run"] == {"seed": 1}


def test_a_key_without_a_section_is_not_dropped() -> None:
    assert read("MODE=1 python3 -m verl data.seed=1 model_engine=megatron --flag=2") == [
        "data.seed=1",
        "model_engine=megatron",
    ]
