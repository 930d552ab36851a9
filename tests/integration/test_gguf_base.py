"""The conversion behind demo-llm, on a tiny Llama that the test writes as GGUF, the way llama.cpp's converter does."""

import json

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers.convert_slow_tokenizer import bytes_to_unicode

from services.learner.gguf_base import build
from services.learner.gguf_base.conversion import convert
from services.rollout.model_files import read_model
from sluice.model_identity import model_identity

pytestmark = pytest.mark.integration

HEADS, KV_HEADS = 4, 2
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TOKENS = [*SPECIAL, *bytes_to_unicode().values(), "ab", "12"]
MERGES = ["a b", "1 2"]


@pytest.fixture(autouse=True)
def _environment_is_put_back(monkeypatch):
    for name in ("HF_HUB_OFFLINE", "TQDM_DISABLE", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "1")


@pytest.fixture(scope="module")
def original():
    """The model that the file is made of."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(TOKENS),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        rope_parameters={"rope_theta": 100_000.0, "rope_type": "default"},
        rms_norm_eps=1e-5,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(1.0 if parameter.ndim == 1 else 0.0, 0.1)
    return model


@pytest.fixture(scope="module")
def file(original, tmp_path_factory):
    """The GGUF file; of every layer one matrix is in blocks of 8 bits, and `original` is given what they unpack to."""
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    write_metadata(writer, original.config)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, original.config.num_hidden_layers)
    for name, parameter in original.named_parameters():
        weight = parameter.detach().numpy()
        written = names.get_name(name, try_suffixes=(".weight",))
        if "down_proj" in name:
            blocks = gguf.quantize(weight, gguf.GGMLQuantizationType.Q8_0)
            parameter.data = torch.from_numpy(gguf.dequantize(blocks, gguf.GGMLQuantizationType.Q8_0).copy())
            writer.add_tensor(written, blocks, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        else:
            writer.add_tensor(written, interleaved(name, weight))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_metadata(writer, config):
    writer.add_name("tiny")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(100_000.0)
    writer.add_rope_dimension_count(config.hidden_size // HEADS)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(TOKENS) - len(SPECIAL)))
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template(TEMPLATE)


def interleaved(name, weight):
    """Rows of queries and keys in the order that llama.cpp rotates: the two halves of a head in turns."""
    heads = HEADS if "q_proj" in name else KV_HEADS if "k_proj" in name else None
    if heads is None:
        return weight
    return np.ascontiguousarray(weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape))


@pytest.fixture(scope="module")
def folder(file, tmp_path_factory):
    out = tmp_path_factory.mktemp("converted") / "model"
    convert(file, out)
    return out


def test_the_weights_are_those_of_the_file_and_the_model_computes_the_same(folder, original):
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert {name for name, _ in model.named_parameters()} == {name for name, _ in original.named_parameters()}
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, original.get_parameter(name)), name
    tokens = torch.arange(40)[None] % len(TOKENS)
    assert torch.allclose(model(tokens).logits, original(tokens).logits, atol=1e-5)


def test_nothing_in_the_folder_speaks_of_gguf(folder):
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["tie_word_embeddings"] is True
    assert config["dtype"] == "float32"
    assert config["rope_parameters"]["rope_theta"] == 100_000.0
    assert not [file for file in folder.iterdir() if "gguf" in file.name or b"gguf" in file.read_bytes().lower()]


def test_a_completion_ends_with_the_files_end_token_wherever_an_engine_looks(folder):
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == 2
    assert read_model(folder).end_token_ids == {2}
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (SPECIAL[1], SPECIAL[2], SPECIAL[2])


def test_text_is_split_as_the_model_was_trained_every_digit_alone(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.convert_ids_to_tokens(tokenizer("ab 12").input_ids) == ["ab", "Ġ", "1", "2"]
    assert tokenizer.decode(tokenizer("ab 12, é").input_ids) == "ab 12, é"


def test_the_chat_template_is_the_files_and_its_marks_are_one_token_each(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    chat = [{"role": "user", "content": "ab"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False) == "<|im_start|>user\nab<|im_end|>\n"
    ids = tokenizer.apply_chat_template(chat, tokenize=True)["input_ids"]
    assert (ids[0], ids[-2]) == (1, 2)
    assert tokenizer.decode([ids[0], *tokenizer("ab").input_ids, 2], skip_special_tokens=True) == "ab"


def test_the_whole_folder_is_made_once_from_the_installed_wheel(file, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(build, "find_gguf", lambda: file)
    out = tmp_path / "cache" / "model"
    assert build.main(["--out", str(out)]) == 0
    assert build.main(["--out", str(out)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "smollm2: converting tiny.gguf, once",
        f"smollm2: wrote {out}",
        f"smollm2: {out} is up to date",
    ]
    assert model_identity(out).tokenizer_hash
    (out / "model.safetensors").write_bytes(b"half")
    assert build.main(["--out", str(out)]) == 0
    AutoModelForCausalLM.from_pretrained(out)


@pytest.mark.parametrize("content", [b"", b"not a model", b"GGUF\x03\x00\x00\x00"])
def test_a_file_that_is_no_model_is_said_in_a_line_and_nothing_is_left(content, tmp_path, monkeypatch, capsys):
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(content)
    monkeypatch.setattr(build, "find_gguf", lambda: broken)
    assert build.main(["--out", str(tmp_path / "cache" / "model")]) == 1
    assert "broken.gguf" in capsys.readouterr().err
    assert list((tmp_path / "cache").iterdir()) == []
