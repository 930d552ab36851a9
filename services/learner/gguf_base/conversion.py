"""Makes an ordinary Hugging Face folder of SmolLM2's GGUF file: float32 weights, tokenizer, chat template, end token.

transformers reads the file (with the package `gguf`) and unpacks the file's 4-bit blocks. This module does three things that
transformers leaves undone: a model unpacked by transformers refuses to be saved; transformers does not know the file's
pre-tokenizer `smollm`; and transformers writes no generation_config.json, from which engines take the end token.
"""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging

_ONLY_OF_GGUF = ("quantization_config", "_name_or_path", "_model_name_or_path", "transformers_version", "architectures")


def convert(gguf: Path, out: Path) -> None:
    """Writes the folder `out`. Raises ValueError when the file has another architecture, no chat template or no end token."""
    logging.disable_progress_bar()
    tokenizer: Any = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    unpacked = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    if unpacked.config.model_type != "llama":
        raise ValueError(f"{gguf}: must be of the architecture llama, got {unpacked.config.model_type}")
    if tokenizer.chat_template is None or tokenizer.eos_token_id is None:
        raise ValueError(f"{gguf}: has no chat template or names no end token; it is not an instruct model")
    model = _plain(unpacked)
    model.save_pretrained(out)
    _plain_tokenizer(tokenizer, max_length=model.config.max_position_embeddings).save_pretrained(out)


def _plain(unpacked: PreTrainedModel) -> LlamaForCausalLM:
    """The same weights in a model without traces of GGUF, and with the end token in its generation config."""
    settings = {name: value for name, value in unpacked.config.to_dict().items() if name not in _ONLY_OF_GGUF}
    model = LlamaForCausalLM(LlamaConfig(**settings))
    model.load_state_dict(unpacked.state_dict())
    model.generation_config = GenerationConfig(
        bos_token_id=model.config.bos_token_id,
        eos_token_id=model.config.eos_token_id,
        pad_token_id=model.config.pad_token_id,
    )
    return model


def _plain_tokenizer(tokenizer: PreTrainedTokenizerFast, *, max_length: int) -> PreTrainedTokenizerFast:
    """The same vocabulary, merges and template, split as SmolLM2 was trained: every digit is a token of its own."""
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.pre_tokenizer = pre_tokenizers.Sequence(  # type: ignore[assignment]
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=tokenizer.bos_token,
        eos_token=tokenizer.eos_token,
        unk_token=tokenizer.unk_token,
        pad_token=tokenizer.pad_token,
        chat_template=tokenizer.chat_template,
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
    )
