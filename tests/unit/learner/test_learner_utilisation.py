"""Model FLOPs against sums worked out by hand, peaks by device names, and peak memory of this process."""

from pathlib import Path

import pytest
import torch

from services.learner.training.device_peak import peak_flops
from services.learner.training.peak_memory import PeakMemory
from services.learner.training.utilisation import ModelCosts, StepFlops, costs_of, step_flops, utilisation
from sluice.config.load import load_config
from sluice.config.schema import Config
from sluice.sizing.config_json import shape_of
from tests.unit.sizing.families import TINY, tiny

COSTS = ModelCosts(token=600.0, forward=200.0, layers_forward=150.0, width=10, windows=(None, None))
"""100 parameters, all trained, 75 of them in two layers."""


def recipe(*overrides: str) -> Config:
    return load_config(None, overrides=["model.path=m", "data.train_files=[a.jsonl]", *overrides])


def test_the_flops_of_a_step_are_6_n_and_6_l_d_s_a_token() -> None:
    found = step_flops(COSTS, [3, 5], recipe())
    # lengths are squared one by one: (3 + 5) / 2 twice would give 2 x 16 and not 9 + 25
    assert found == StepFlops(model=6 * 100 * 8 + 6 * 2 * 10 * (9 + 25), computed=found.model)
    assert found.model == 8880


def test_a_prompt_that_samples_share_counts_once() -> None:
    found = step_flops(COSTS, [6, 5], recipe(), not_computed=[4])
    assert found.model == 6 * 100 * 7 + 6 * 2 * 10 * (36 + 25 - 16)


def test_a_window_bounds_what_a_token_sees() -> None:
    windowed = ModelCosts(token=0.0, forward=0.0, layers_forward=0.0, width=1, windows=(4, None))
    assert windowed.pairs(3) == 4.5 + 4.5
    assert windowed.pairs(10) == (4 * 10 - 8) + 50


def test_what_is_computed_twice_counts_in_hfu_alone() -> None:
    plain = step_flops(COSTS, [4], recipe())
    saved = step_flops(COSTS, [4], recipe("learner.gradient_checkpointing=true"))
    attention = 4 * 10 * 2 * 8  # forward: 4 D for each of the 2 x 8 pairs
    assert (saved.model, saved.computed - saved.model) == (plain.model, 150 * 4 + attention)
    twice = step_flops(COSTS, [4], recipe("algorithm.proximal=recompute", "coordinator.max_staleness=0"))
    assert twice.computed - twice.model == 200 * 4 + attention
    assert utilisation(plain, elapsed_s=2.0, peak_flops=1e4) == {"learner/mfu": plain.model / 2e4}
    assert utilisation(saved, elapsed_s=2.0, peak_flops=1e4)["learner/hfu"] == saved.computed / 2e4


@pytest.mark.parametrize("name", TINY)
def test_n_is_what_multiplies_for_one_token(name: str) -> None:
    """All parameters but the embedding's lookup, the head once whether tied or not, of experts those that are chosen."""
    model = tiny(name)
    costs = costs_of(model)
    assert costs is not None
    shape = shape_of(model.config.to_dict())
    assert costs.token == pytest.approx(6 * shape.active_parameters)
    assert costs.forward - costs.layers_forward == pytest.approx(2 * (shape.embedding + shape.hidden))
    assert costs.width == shape.heads * shape.head_dim
    windows = {"gemma3": (4, 4, None), "mistral": (8, 8, 8)}
    assert costs.windows == windows.get(name, (None, None, None))


def test_frozen_parameters_have_no_gradient_of_their_own() -> None:
    model = tiny("llama")
    layer = model.base_model.layers[0].mlp.down_proj.weight
    before = costs_of(model)
    layer.requires_grad_(False)
    after = costs_of(model)
    layer.requires_grad_(True)
    assert before is not None
    assert after is not None
    assert before.token - after.token == 2 * layer.numel()


def test_a_layer_or_experts_of_another_kind_have_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny("gemma3").config, "layer_types", ["full_attention", "linear_attention", "full_attention"])
    assert costs_of(tiny("gemma3")) is None
    monkeypatch.setattr(tiny("mixtral").config, "num_experts_per_tok", 0)
    assert costs_of(tiny("mixtral")) is None


@pytest.mark.parametrize(
    ("name", "tera"),
    [
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.5),
        ("NVIDIA H100 NVL", 835.5),
        ("NVIDIA H200", 989.4),
        ("NVIDIA B200", 2250),
        ("NVIDIA L40S", 362.05),
        ("NVIDIA A10", 125),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("AMD Instinct MI300X OAM", 1307.4),
    ],
)
def test_a_known_device_has_its_peak(name: str, tera: float) -> None:
    assert peak_flops(name) == pytest.approx(tera * 1e12)


@pytest.mark.parametrize(
    "name",
    [
        "CPU",
        "NVIDIA A10G",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "Tesla V100-SXM2-16GB",
        "",
    ],
)
def test_an_unknown_device_has_none(name: str) -> None:
    assert peak_flops(name) is None


def test_peak_memory_is_that_of_the_time_since_the_reset() -> None:
    memory = PeakMemory(torch.device("cpu"))
    large = torch.ones(64 << 20, dtype=torch.uint8)
    before = memory.read_bytes()
    del large
    memory.reset()
    after = memory.read_bytes()
    assert before is not None
    assert after is not None
    assert before - after > 48 << 20


def test_without_the_right_to_reset_the_peak_is_the_process_s_and_without_proc_there_is_none(tmp_path: Path) -> None:
    memory = PeakMemory(torch.device("cpu"), proc=tmp_path)
    (tmp_path / "clear_refs").mkdir()  # as good as a file that refuses
    memory.reset()
    assert memory.read_bytes() is None
    (tmp_path / "status").write_text("Name:\tpython\nVmHWM:\t    2048 kB\n")
    assert memory.read_bytes() == 2048 * 1024
