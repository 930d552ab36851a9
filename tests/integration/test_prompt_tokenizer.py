"""Tokenizers from model folders: with torch kept out where it is not needed, and never an empty one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from services.coordinator.prompts.render import load_tokenizer
from sluice.errors import ConfigError

pytestmark = pytest.mark.integration

OPENS_A_STREAM = """
import sys
from services.coordinator.prompts import PromptStream
from sluice.config.load import load_config
overrides = [f"model.path={sys.argv[1]}", "data.template=none", "data.train_files=['mixadd3:train']"]
stream = PromptStream.open(load_config(None, overrides=overrides), files=["mixadd3:train"])
stream.next(0)
sys.exit("torch" in sys.modules or "vllm" in sys.modules)
"""


def save_tokenizer(folder: Path, **settings: str) -> None:
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", **settings).save_pretrained(folder)


def test_prompts_are_drawn_without_torch(tmp_path: Path) -> None:
    save_tokenizer(tmp_path)
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", OPENS_A_STREAM, str(tmp_path)], check=True, cwd=root)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3"}))
    with pytest.raises(ConfigError, match="must have a tokenizer"):
        load_tokenizer(str(tmp_path))
    with pytest.raises(ConfigError, match=r"none: its tokenizer cannot be loaded"):
        load_tokenizer(str(tmp_path / "none"))


def test_a_folder_that_names_a_class_of_its_own_gets_what_autotokenizer_gives(tmp_path: Path) -> None:
    save_tokenizer(tmp_path)
    settings = tmp_path / "tokenizer_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}))
    assert load_tokenizer(str(tmp_path))("a")["input_ids"] == [0]
