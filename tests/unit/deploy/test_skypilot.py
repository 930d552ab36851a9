"""deploy/skypilot.yaml: scripts that bash reads, a command that `sluice up` takes. No part of SkyPilot is asked."""

import argparse
import re
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from sluice.cli.main import main

ROOT = Path(__file__).parents[3]
TASK = yaml.safe_load((ROOT / "deploy" / "skypilot.yaml").read_text())


@pytest.mark.parametrize("part", ["setup", "run"])
def test_bash_reads_its_scripts(part: str) -> None:
    subprocess.run(["bash", "-n"], input=TASK[part], text=True, check=True)


class Parsed(Exception):
    """The command line is fine."""


def test_what_it_runs_is_a_run_on_ray_of_a_recipe_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (ROOT / TASK["envs"]["RECIPE"]).is_file()
    (line,) = re.findall(r"sluice (up .*)", TASK["run"].replace("\\\n", ""))
    words = [re.sub(r"^\$SKYPILOT\w+$", "8", word) for word in shlex.split(line)]
    words = [str(TASK["envs"].get(word.removeprefix("$"), word)) if word.startswith("$") else word for word in words]
    assert words[:5] == ["up", "-c", TASK["envs"]["RECIPE"], "--on", "ray"]
    parse = argparse.ArgumentParser.parse_args

    def parse_and_stop(self: argparse.ArgumentParser, argv: Sequence[str] | None = None) -> None:
        raise Parsed(parse(self, argv))

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
    with pytest.raises(Parsed):
        main(words)
