"""A model that the learner would compute wrongly is found before anything is trained, and refused with one line."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, LlamaConfig

from services.learner.policy import proof
from services.learner.policy.head import Head
from services.learner.policy.model_config import count_parameters, prepare, read_model_config
from services.learner.policy.proof import Forms, Verdict, compare, prove, refusal_of
from services.learner.policy.reduced_model import random_model, reduced_config
from sluice.errors import ConfigError
from tests.decoder_families import tiny_config
from tests.unit.learner.learner_cases import make_config, write_tiny_model

pytestmark = pytest.mark.integration


def _head(**changes: Any) -> Head:
    return Head(**{"temperature": 0.7, "chunk_tokens": 16, "float32": False} | changes)


def _verdict(family: str, head: Head | None = None, /, **settings: Any) -> Verdict:
    model_config = tiny_config(family)
    for name, value in settings.items():
        setattr(model_config, name, value)
    prepare(model_config, max_model_len=128)
    return compare(random_model(model_config, seed=0), head or _head())


class _OneRank:
    """The only rank of a learner."""

    leads = True
    device = torch.device("cpu")

    def share_texts(self, texts: list[str]) -> list[str]:
        return texts


class _Follower(_OneRank):
    """A rank that hears what the leader found."""

    leads = False

    def __init__(self, heard: list[str]) -> None:
        self.heard = heard

    def share_texts(self, texts: list[str]) -> list[str]:
        return self.heard


def _prove(model: Path, ranks: Any, **learner: Any) -> Forms:
    config = make_config(model, learner=learner)
    model_config = read_model_config(config)
    parameters = count_parameters(model_config, path=str(model))
    return prove(config, model_config, head=_head(), parameters=parameters, ranks=ranks)


@pytest.mark.parametrize("checkpointed", [False, True])
def test_a_right_model_passes_packed(tmp_path: Path, checkpointed: bool) -> None:
    found = _prove(write_tiny_model(tmp_path), _OneRank(), gradient_checkpointing=checkpointed)
    assert found == Forms(rows=False, shares=True)


def test_a_large_model_is_proved_by_a_copy_without_its_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tiny_model(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    monkeypatch.setattr(proof, "SMALL_PARAMETERS", 0)
    assert not _prove(tmp_path, _OneRank()).rows


def test_a_state_that_runs_on_needs_one_sequence_a_row() -> None:
    verdict = _verdict("lfm2")
    assert verdict.packed > 0.01
    assert verdict.rows < 1e-4
    assert verdict.needs_rows


@pytest.mark.parametrize("family", ["gpt_oss", "gemma2"])
def test_sinks_and_caps_go_through_the_packed_attention(family: str) -> None:
    head = _head(cap=30.0) if family == "gemma2" else _head()
    verdict = _verdict(family, head)
    assert verdict.packed < 1e-4
    assert verdict.shared < 1e-4


def test_logits_that_are_changed_in_a_way_not_known_are_found() -> None:
    verdict = _verdict("gemma2", _head())
    assert not verdict.passes
    line = refusal_of(verdict, name="Gemma2ForCausalLM", path="models/x")
    assert line.startswith(
        "model.path: models/x (Gemma2ForCausalLM) is not computed as transformers computes it: differs by "
    )
    assert len(line.splitlines()) == 1


def test_the_refusal_of_a_model_that_cannot_be_called_says_why() -> None:
    verdict = Verdict(packed=math.nan, rows=math.nan, reason="TypeError: forward() got an unexpected keyword")
    line = refusal_of(verdict, name="X", path="models/x")
    assert "cannot be packed (TypeError: forward() got an unexpected keyword)" in line


@pytest.mark.parametrize("settings", [{"attention_dropout": 0.5}, {"residual_dropout": 0.5}])
def test_dropout_of_the_configuration_is_off(settings: dict[str, float]) -> None:
    assert _verdict("seed_oss", None, **settings).packed < 1e-4


def test_router_jitter_is_off() -> None:
    assert _verdict("mixtral", router_jitter_noise=0.5).packed < 1e-4


def test_every_rank_refuses_what_the_leader_refuses(tmp_path: Path) -> None:
    write_tiny_model(tmp_path)
    with pytest.raises(ConfigError, match="differs by 2 nats"):
        _prove(tmp_path, _Follower(["differs by 2 nats", "", "", ""]))
    assert _prove(tmp_path, _Follower(["", "rows", "differs", ""])) == Forms(rows=True, shares=False)


@pytest.mark.parametrize(
    ("changes", "said"), [({"model_type": "gpt2"}, "in `layers`"), ({"model_type": "phi"}, "without bias")]
)
def test_a_model_without_the_parts_that_the_learner_needs_is_refused_by_its_name(
    tmp_path: Path, changes: dict[str, str], said: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"n_positions": 128} | changes))
    with pytest.raises(ConfigError, match=said) as caught:
        _prove(tmp_path, _OneRank())
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("text", ["{", "[]", '{"model_type": "nobody-knows"}', "{}"])
def test_a_folder_with_a_useless_configuration_is_refused_with_a_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=r"model\.path: .* has no usable config\.json") as caught:
        _prove(tmp_path, _OneRank())
    assert len(str(caught.value).splitlines()) == 1


def test_the_copy_has_a_layer_of_every_kind_and_at_least_two() -> None:
    assert reduced_config(LlamaConfig(num_hidden_layers=48)).num_hidden_layers == 2
    hybrid = reduced_config(tiny_config("qwen3_next"))
    assert hybrid.layer_types == ["linear_attention"] * 3 + ["full_attention"]


@pytest.mark.parametrize("family", ["qwen2", "mixtral", "deepseek_v3", "gemma3_text", "cwm", "qwen3_next"])
def test_the_copy_of_a_large_model_is_a_fraction_of_it(family: str) -> None:
    model_config = AutoConfig.for_model(family)
    whole, copied = (count_parameters(one, path=family) for one in (model_config, reduced_config(model_config)))
    assert copied < min(1.3e9, whole / 4)


@pytest.mark.parametrize("max_model_len", [16, 100])
def test_longrope_does_not_depend_on_what_is_packed_together(max_model_len: int) -> None:
    factors = {"short_factor": [1.0] * 4, "long_factor": [2.0, 3.0, 4.0, 5.0]}
    model_config = tiny_config("phi3")
    model_config.original_max_position_embeddings = 16
    model_config.rope_parameters = {"rope_type": "longrope", "rope_theta": 1e4, **factors}
    model_config.standardize_rope_params()
    prepare(model_config, max_model_len=max_model_len)
    assert compare(random_model(model_config, seed=0), _head(), long=40).packed < 1e-4


def test_dynamic_ntk_does_not_depend_on_what_is_packed_together() -> None:
    model_config = tiny_config("llama")
    model_config.rope_parameters = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
    model_config.max_position_embeddings = 32
    prepare(model_config, max_model_len=32)
    assert compare(random_model(model_config, seed=0), _head()).packed < 1e-4
