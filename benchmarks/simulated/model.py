"""A model folder without weights, all that a coordinator looks at."""

import json
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

TOKENS = ("<pad>", "<bos>", "<eos>", *"0123456789+-*/=() \n?:.,;#<>_", *"abcdefghijklmnopqrstuvwxyz")

VOCABULARY = 150_000
"""The number of token ids, of which the tokenizer knows the first: completions of simulated rollouts hold any."""


def write_model(folder: Path) -> Path:
    """As much of a model as a coordinator looks at: config.json and a tokenizer of one character a token."""
    folder.mkdir()
    tokenizer = Tokenizer(models.WordLevel({token: index for index, token in enumerate(TOKENS)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "TokenizersBackend"}))
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen3", "vocab_size": VOCABULARY}))
    return folder
