"""A model whose turns have the length that its prompt asks for: from `c7` on it counts down to the end token.

A Qwen3 of ordinary shape and cost: only the matrices through which a layer writes to the residual stream are zero, so the
next token follows from the last one alone, and the head is sure of it. Half of the vocabulary are words for prompts and for
what a tool answers.
"""

import json
from pathlib import Path

PAD, BOS, EOS = 0, 1, 2
_NAMED = ("<pad>", "<bos>", "<eos>")
WORDS = 500
COUNTS = 509
VOCABULARY = len(_NAMED) + WORDS + COUNTS
_FIRST_COUNT = len(_NAMED) + WORDS
SURE_NATS = 60.0
"""The logit of the next token; the others' are those of random directions, a tenth of it."""


def word(number: int) -> str:
    """A word of a prompt."""
    return f"w{number % WORDS}"


def starts(tokens: int) -> str:
    """The last word of a prompt after which the model writes so many tokens, the end token included."""
    return f"c{tokens - 1}"


def write_model(folder: Path, *, hidden: int, layers: int, positions: int) -> Path:
    """The model in float32 and its tokenizer of one word a token."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 128,
        head_dim=64,
        max_position_embeddings=positions,
        tie_word_embeddings=False,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )
    model = Qwen3ForCausalLM(config)
    directions = torch.nn.functional.normalize(torch.randn(VOCABULARY, hidden), dim=-1)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.copy_(directions)
        model.lm_head.weight.copy_(directions[_before()] * SURE_NATS / hidden**0.5)
    model.save_pretrained(folder)
    words = [*_NAMED, *map(word, range(WORDS)), *(f"c{count}" for count in range(COUNTS))]
    tokenizer = Tokenizer(models.WordLevel({name: number for number, name in enumerate(words)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>"}
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": False} | special)
    )
    return folder


def _before() -> list[int]:
    """The token that each token follows: a count follows the count above, the end follows 0, words and the rest nothing."""
    before = [PAD] * VOCABULARY
    before[EOS] = _FIRST_COUNT
    for number in range(_FIRST_COUNT, VOCABULARY - 1):
        before[number] = number + 1
    return before
