"""Folders that a run writes while it trains, at its end and from its checkpoints: the same version, the same bytes."""

import io
import json
import shutil
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from services.learner.checkpoint import export_checkpoint
from sluice.config.load import dump_config
from sluice.testing.fakes import serving
from tests.integration.service_process import ENVIRON, ROOT, exit_code, learner
from tests.integration.tiny_run import tiny_coordinator

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]


async def test_a_checkpoint_of_two_ranks_is_exported_as_the_model_that_the_run_itself_wrote(tmp_path: Path) -> None:
    run_dir = await _run_of_three_steps(tmp_path, ranks=2)
    assert [path.name for path in (run_dir / "exports").iterdir()] == ["step-2"]

    newest = _sluice_export(run_dir)
    assert newest.returncode == 0, newest.stderr
    target = run_dir / "exports" / "step-3"
    assert newest.stdout.startswith(f"{target}: version a3, bfloat16, ")
    _assert_same_files(target, run_dir / "model")

    older = _export(run_dir, "--checkpoint", "step-2", "--to", str(tmp_path / "older"))
    assert older.returncode == 0, older.stderr
    _assert_same_files(tmp_path / "older", run_dir / "exports" / "step-2")

    full = _export(run_dir, "--dtype", "float32", "--to", str(tmp_path / "full"))
    assert full.returncode == 0, full.stderr
    ours, theirs = (AutoModelForCausalLM.from_pretrained(path) for path in (tmp_path / "full", target))
    assert (ours.dtype, theirs.dtype) == (torch.float32, torch.bfloat16)
    for name, weight in ours.named_parameters():
        assert torch.equal(weight.to(torch.bfloat16), theirs.get_parameter(name)), name
    assert not torch.equal(ours.model.norm.weight, theirs.model.norm.weight.float())  # what bfloat16 loses
    assert theirs.generate(torch.tensor([[5, 6]]), max_new_tokens=4, min_new_tokens=4).shape == (1, 6)

    _check_refusals(run_dir, target, tmp_path)


@pytest.mark.parametrize("pushed", ["merged", "adapter"])
async def test_adapters_are_exported_merged_whatever_rollouts_are_sent(tmp_path: Path, pushed: str) -> None:
    run_dir = await _run_of_three_steps(tmp_path, ranks=1, model={"lora_rank": 2}, weights={"lora": pushed})
    exported = _export(run_dir)
    assert exported.returncode == 0, exported.stderr
    _assert_same_files(run_dir / "exports" / "step-3", run_dir / "model")
    trained, base = (AutoModelForCausalLM.from_pretrained(path) for path in (run_dir / "model", tmp_path / "base"))
    assert {name for name, _ in trained.named_parameters()} == {name for name, _ in base.named_parameters()}
    layer = "model.layers.1.mlp.up_proj.weight"
    assert not torch.equal(trained.get_parameter(layer), base.get_parameter(layer).to(torch.bfloat16))


def _check_refusals(run_dir: Path, target: Path, tmp_path: Path) -> None:
    again = _export(run_dir)
    assert (again.returncode, f"{target} exists" in again.stderr) == (2, True)
    assert _export(run_dir, "--force").returncode == 0
    _assert_same_files(target, run_dir / "model")

    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("years of work")
    over = _export(run_dir, "--to", str(mine), "--force")
    assert (over.returncode, "is not a model" in over.stderr) == (2, True)
    assert (mine / "thesis.tex").exists()

    unknown = _export(run_dir, "--checkpoint", "step-7", "--to", str(tmp_path / "none"))
    assert (unknown.returncode, "has step-2, step-3" in unknown.stderr) == (1, True)
    nowhere = _export(tmp_path / "nowhere")
    assert (nowhere.returncode, "must be the directory of a run" in nowhere.stderr) == (2, True)
    shutil.rmtree(run_dir / "checkpoints")
    empty = _export(run_dir, "--to", str(tmp_path / "none"))
    assert (empty.returncode, "holds no checkpoint that verifies" in empty.stderr) == (1, True)
    assert not (tmp_path / "none").exists()


async def _run_of_three_steps(tmp_path: Path, *, ranks: int, **sections: dict[str, Any]) -> Path:
    """The directory of a run that has ended."""
    settings = {"mini_batch_size": 3, "checkpoint_every_steps": 2, "export_every_steps": 2, "lr": 1e-2}
    facts = {"model": {"dtype": "bfloat16"} | sections.pop("model", {}), "learner": settings}
    fake = tiny_coordinator(tmp_path, ready=3, end=3, **facts, **sections)
    (fake.run_dir / "config.yaml").write_text(dump_config(fake.config))
    async with serving(fake) as address, learner(address, ranks=ranks) as process:
        assert await exit_code(process) == 0
    return fake.run_dir


def _export(run_dir: Path, *flags: str) -> "subprocess.CompletedProcess[str]":
    """`sluice export` without the seconds of a process's imports."""
    with redirect_stdout(io.StringIO()) as output, redirect_stderr(io.StringIO()) as errors:
        code = export_checkpoint.main([str(run_dir), *flags])
    return subprocess.CompletedProcess(flags, code, output.getvalue(), errors.getvalue())


def _sluice_export(run_dir: Path, *flags: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "sluice.cli.main", "export", str(run_dir), *flags]
    return subprocess.run(command, env=ENVIRON, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)


def _assert_same_files(ours: Path, theirs: Path) -> None:
    names = {path.name for path in theirs.iterdir()}
    assert {path.name for path in ours.iterdir()} == names
    for name in names:
        assert _content(ours / name) == _content(theirs / name), name


def _content(path: Path) -> tuple[object, bytes]:
    """Header and bytes; safetensors writes the facts of its header in any order."""
    content = path.read_bytes()
    if path.suffix != ".safetensors":
        return None, content
    end = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:end]), content[end:]
