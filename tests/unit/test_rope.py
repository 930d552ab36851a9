"""Frequencies of position embeddings that do not depend on what is packed together."""

from types import SimpleNamespace

import pytest
from transformers import Phi3Config
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from sluice.rope import fix_rope, served_rope

SHORT, LONG = [1.0] * 4, [1.5, 2.0, 3.0, 4.0]
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 100.0,
    "short_factor": SHORT,
    "long_factor": LONG,
    "original_max_position_embeddings": 16,
}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 100.0, "factor": 4.0}


@pytest.mark.parametrize(("max_model_len", "factors"), [(16, SHORT), (17, LONG)])
def test_longrope_is_chosen_once_by_the_longest_sequence_of_the_run(max_model_len: int, factors: list[float]) -> None:
    found = served_rope(LONGROPE, max_model_len=max_model_len, max_positions=64, head_size=8)
    assert found["short_factor"] == found["long_factor"] == factors
    assert found["attention_factor"] == pytest.approx((1 + 2 / 4) ** 0.5)  # log 4 / log 16


def test_a_magnitude_of_the_checkpoint_goes_with_its_factors() -> None:
    given = LONGROPE | {"short_mscale": 1.1, "long_mscale": 1.3}
    served = {length: served_rope(given, max_model_len=length, max_positions=64, head_size=8) for length in (16, 17)}
    assert [served[length]["attention_factor"] for length in (16, 17)] == [1.1, 1.3]


def test_dynamic_ntk_has_one_base_for_all_lengths() -> None:
    found = served_rope(DYNAMIC, max_model_len=999, max_positions=64, head_size=8)
    assert found == {"rope_type": "default", "rope_theta": 100.0}
    trained = served_rope(DYNAMIC | {"max_trained_positions": 32}, max_model_len=1, max_positions=64, head_size=8)
    assert trained["rope_theta"] == pytest.approx(100 * (4 * 2 - 3) ** (8 / 6))
    alpha = served_rope(DYNAMIC | {"alpha": 10.0}, max_model_len=1, max_positions=64, head_size=8)
    assert alpha["rope_theta"] == pytest.approx(100 * 10 ** (8 / 6))


@pytest.mark.parametrize("kind", ["default", "linear", "yarn", "llama3"])
def test_what_is_fixed_already_stays(kind: str) -> None:
    given = {"rope_type": kind, "rope_theta": 5.0, "factor": 2.0}
    assert served_rope(given, max_model_len=1, max_positions=64, head_size=8) == given


def test_each_kind_of_layer_has_parameters_of_its_own() -> None:
    config = SimpleNamespace(
        rope_parameters={"full_attention": DYNAMIC, "sliding_attention": {"rope_type": "default"}, "none": None},
        max_position_embeddings=64,
        head_dim=8,
    )
    fix_rope(config, max_model_len=100)
    assert config.rope_parameters["full_attention"] == {"rope_type": "default", "rope_theta": 100.0}
    assert config.rope_parameters["none"] is None


@pytest.mark.parametrize("length", [1, 16, 17, 64])
def test_transformers_computes_the_fixed_frequencies_at_every_length(length: int) -> None:
    config = Phi3Config(
        hidden_size=16, num_attention_heads=2, max_position_embeddings=64, original_max_position_embeddings=16,
        rope_parameters=LONGROPE, pad_token_id=None,
    )  # fmt: skip
    fix_rope(config, max_model_len=64)
    frequencies, magnitude = ROPE_INIT_FUNCTIONS["longrope"](config, None, seq_len=length)
    assert frequencies.tolist() == pytest.approx([1 / (f * 100 ** (i / 4)) for i, f in enumerate(LONG)])
    assert magnitude == pytest.approx(1.5**0.5)
