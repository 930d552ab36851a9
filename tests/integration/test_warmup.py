"""The demo's base model: what is written loads like any Hugging Face folder, and is made once."""

import json
import random

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from services.learner.sft_base import build as warmup
from services.learner.sft_base import training
from services.learner.sft_base.stages import Stage
from services.learner.sft_base.training import greedy_accuracy, make_tokenizer, train_base
from sluice.tasks import mixadd3

pytestmark = pytest.mark.integration

QUICK = tuple(Stage(name=name, lr=2e-3, steps=2) for name in ("addcot3", "mixadd3"))


@pytest.fixture
def quick(monkeypatch):
    """Two steps a stage instead of hundreds, few rows and few prompts; and no wider effects of torch's settings."""
    monkeypatch.setattr(training, "_BATCH_ROWS", 16)
    monkeypatch.setattr(training, "_CHECK_PROMPTS", 16)
    monkeypatch.setattr(warmup, "STAGES", QUICK)
    monkeypatch.setattr(warmup, "MIN_GREEDY_ACCURACY", 0.0)
    monkeypatch.setattr(warmup, "cache_key", lambda seed: f"quick-{seed}")
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("quick")
def test_the_folder_loads_encodes_a_prompt_as_its_characters_and_is_made_once_a_recipe(tmp_path):
    out = tmp_path / "base"
    assert warmup.build(out, seed=3)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)

    assert model.num_parameters() == 338_784
    assert model.config.tie_word_embeddings
    assert model.generation_config.do_sample in (None, False)
    assert model.generation_config.temperature in (None, 1.0)
    assert (model.config.pad_token_id, model.config.bos_token_id, model.config.eos_token_id) == (0, 1, 2)
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    text = "67+58=7+8+0=15;6+5+1=12#125"
    assert tokenizer(text).input_ids == [mixadd3.VOCABULARY.index(character) for character in text]
    assert tokenizer.decode([*tokenizer(text).input_ids, 2], skip_special_tokens=True) == text
    assert [stage["steps"] for stage in json.loads((out / "warmup.json").read_text())["stages"]] == [2, 2]
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_somebody_elses_folder_is_never_replaced(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(ValueError, match="give another --out"):
        warmup.build(tmp_path, force=True)
    assert (tmp_path / "thesis.tex").read_text() == "precious"


@pytest.mark.usefixtures("quick")
def test_a_base_that_has_learned_too_little_is_refused_and_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(warmup, "MIN_GREEDY_ACCURACY", 0.3)
    monkeypatch.setattr(training, "_MOST_MORE_STEPS", 0)
    with pytest.raises(RuntimeError, match=r"base: greedy accuracy 0\.\d+ is still below 0\.3"):
        warmup.build(tmp_path / "base")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("quick")
def test_the_last_stage_goes_on_until_the_base_is_accurate_enough(monkeypatch):
    monkeypatch.setattr(training, "_CHECK_EVERY_STEPS", 1)
    found = iter([0.24, 0.47, 0.6])
    monkeypatch.setattr(training, "greedy_accuracy", lambda model, prompts: next(found))
    lines = []
    train_base(seed=0, architecture=warmup.ARCHITECTURE, stages=QUICK, min_accuracy=0.5, report=lines.append)
    assert lines[-1] == "base: greedy accuracy 0.600 on training prompts after 2 more steps"


@pytest.mark.usefixtures("quick")
def test_a_stage_takes_its_number_of_steps_and_says_so():
    lines = []
    train_base(seed=0, architecture=warmup.ARCHITECTURE, stages=QUICK, min_accuracy=0.0, report=lines.append)
    assert [line.partition(",")[0] for line in lines[:2]] == ["addcot3: step 2 of 2", "mixadd3: step 2 of 2"]
    assert len(lines) == 3


def test_the_recipe_and_the_seed_are_in_the_key(monkeypatch):
    keys = {warmup.cache_key(0), warmup.cache_key(1)}
    monkeypatch.setattr(warmup, "STAGES", QUICK)
    keys.add(warmup.cache_key(0))
    monkeypatch.setattr(mixadd3, "demonstration", lambda prompt, rng: f"#{rng.random()}")
    keys.add(warmup.cache_key(0))
    assert len(keys) == 4


def test_an_unknown_character_is_an_error_and_not_a_silent_token():
    with pytest.raises(Exception, match="UNK"):  # what the library raises is a bare Exception
        make_tokenizer(max_length=128)("67*A=")


def test_accuracy_counts_right_and_finished_completions_alone(monkeypatch):
    prompts = ["1+1=", "2+2=", "67+58=", "9+9="]
    said = {"1+1=": "#2", "2+2=": "#5", "67+58=": "7+8+0=15;6+5+1=12#125", "9+9=": "#18"}

    def complete(model, same_length):
        endings = [[] if prompt == "9+9=" else [2] for prompt in same_length]
        return [
            [mixadd3.VOCABULARY.index(character) for character in said[prompt]] + ending
            for prompt, ending in zip(same_length, endings, strict=True)
        ]

    monkeypatch.setattr("services.learner.sft_base.training._complete", complete)
    random.shuffle(prompts)
    assert greedy_accuracy(None, prompts) == 0.5
