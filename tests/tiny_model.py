"""A random Qwen3 of the demo's shape as an ordinary Hugging Face folder, and plain references to check engines with.

Its generation_config.json is hostile on purpose: an engine that takes sampling defaults from it fails every test.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from sluice.policy_version import PolicyVersion
from sluice.weights.manifest import plan
from sluice.weights.snapshot import Packer, Snapshot

_NAMED = ("<pad>", "<bos>", "<eos>", *"0123456789+-*/=() \n?:.,;#<>_", *"abcdefghijklmnopqrstuvwxyz")
TOKENS = (*_NAMED, *(f"<unused{index}>" for index in range(64 - len(_NAMED))))
PAD, BOS, EOS = 0, 1, 2
CONTEXT = 128

HOSTILE = {"do_sample": True, "temperature": 0.1, "top_k": 1, "top_p": 0.1, "repetition_penalty": 2.0}


def write_tiny_model(path: Path, *, seed: int = 0, heads: int = 3) -> Path:
    """Hidden `heads` x 32, 3 layers, MLP 256, vocabulary 64, tied head."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=64,
        hidden_size=32 * heads,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=32,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )
    model = Qwen3ForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.08)
    model.save_pretrained(path)
    (path / "generation_config.json").write_text(json.dumps({**HOSTILE, "eos_token_id": EOS, "pad_token_id": PAD}))
    _tokenizer().save_pretrained(path)
    return path


def load(path: Path) -> PreTrainedModel:
    """The model in float32."""
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


def perturbed(model: PreTrainedModel, *, seed: int, scale: float = 0.08) -> PreTrainedModel:
    """Changes every matrix of `model` in place and returns it."""
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.add_(torch.randn(parameter.shape, generator=noise) * scale)
    return model


def snapshot(model: PreTrainedModel, number: int, *, lineage: str = "a", bucket_bytes: int = 1 << 16) -> Snapshot:
    """The model's weights as version `number`."""
    named = dict(model.named_parameters())
    packer = Packer(plan([(n, "float32", tuple(p.shape)) for n, p in named.items()], bucket_bytes=bucket_bytes))
    for name, parameter in named.items():
        packer.put(name, parameter.detach().numpy())
    return packer.seal(PolicyVersion(lineage=lineage, number=number))


@torch.no_grad()
def logprobs(
    model: PreTrainedModel, prompt: Sequence[int], completion: Sequence[int], *, temperature: float = 1.0
) -> np.ndarray:
    """float32[T] nats of every completion token under softmax(logits / temperature), one plain forward pass."""
    tokens = torch.tensor([[*prompt, *completion]])
    logits = model(tokens).logits[0, len(prompt) - 1 : -1].float() / temperature
    return torch.log_softmax(logits, -1).gather(1, torch.tensor([*completion])[:, None])[:, 0].numpy()


@torch.no_grad()
def nucleus_logprobs(
    model: PreTrainedModel, prompt: Sequence[int], completion: Sequence[int], *, top_p: float
) -> np.ndarray:
    """float32[T] nats of every completion token within the nucleus of mass `top_p`, token by token; -inf outside of it."""
    logits = model(torch.tensor([[*prompt, *completion]])).logits[0, len(prompt) - 1 : -1].double()
    found = []
    for row, token in zip(logits.softmax(-1).tolist(), completion, strict=True):
        kept: dict[int, float] = {}
        for candidate in sorted(range(len(row)), key=lambda index: -row[index]):
            if sum(kept.values()) < top_p:
                kept[candidate] = row[candidate]
        found.append(np.log(kept[token] / sum(kept.values())) if token in kept else -np.inf)
    return np.array(found, np.float32)


@torch.no_grad()
def greedy(model: PreTrainedModel, prompt: Sequence[int], *, max_tokens: int) -> list[int]:
    """The greedy completion, end token included, one plain forward pass a token."""
    tokens = [*prompt]
    while len(tokens) < len(prompt) + max_tokens and (len(tokens) == len(prompt) or tokens[-1] != EOS):
        tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
    return tokens[len(prompt) :]


def _tokenizer() -> PreTrainedTokenizerFast:
    words = {token: index for index, token in enumerate(TOKENS)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<pad>"
    )
