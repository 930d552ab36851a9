"""The demo's base model: what is written loads like any Hugging Face folder, and is made once."""

import json
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from services.coordinator.episodes.chat_template import TemplateChat
from services.learner.sft_base import build as sft_base
from services.learner.sft_base import mixadd3_course, products_course, training
from services.learner.sft_base.course import Stage
from services.learner.sft_base.training import greedy_accuracy, make_tokenizer, train_base
from services.reward.environments.builtin.calculator import Calculator
from sluice.environments import Message
from sluice.tasks import mixadd3, products

pytestmark = pytest.mark.integration

QUICK = replace(
    mixadd3_course.COURSE,
    stages=tuple(Stage(name=name, lr=2e-3, steps=2) for name in ("addcot3", "mixadd3")),
    min_accuracy=0.0,
)


@pytest.fixture
def quick(monkeypatch):
    """Two steps a stage instead of hundreds, few rows and few prompts; and no wider effects of torch's settings."""
    monkeypatch.setattr(training, "_BATCH_ROWS", 16)
    monkeypatch.setattr(training, "_CHECK_PROMPTS", 16)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("quick")
def test_the_folder_loads_encodes_a_prompt_as_its_characters_and_is_made_once_a_recipe(tmp_path):
    out = tmp_path / "base"
    assert sft_base.build(out, course=QUICK, seed=3)
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
        sft_base.build(tmp_path, force=True)
    assert (tmp_path / "thesis.tex").read_text() == "precious"


@pytest.mark.usefixtures("quick")
def test_a_base_that_has_learned_too_little_is_refused_and_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "_MOST_MORE_STEPS", 0)
    with pytest.raises(RuntimeError, match=r"base: greedy accuracy 0\.\d+ is still below 0\.3"):
        sft_base.build(tmp_path / "base", course=replace(QUICK, min_accuracy=0.3))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("quick")
def test_the_last_stage_goes_on_until_the_base_is_accurate_enough(monkeypatch):
    monkeypatch.setattr(training, "_CHECK_EVERY_STEPS", 1)
    found = iter([0.24, 0.47, 0.6])
    monkeypatch.setattr(training, "greedy_accuracy", lambda *_: next(found))
    lines = []
    train_base(replace(QUICK, min_accuracy=0.5), seed=0, report=lines.append)
    assert lines[-1] == "base: greedy accuracy 0.600 on training prompts after 2 more steps"


@pytest.mark.usefixtures("quick")
def test_a_stage_takes_its_number_of_steps_and_says_so():
    lines = []
    train_base(QUICK, seed=0, report=lines.append)
    assert [line.partition(",")[0] for line in lines[:2]] == ["addcot3: step 2 of 2", "mixadd3: step 2 of 2"]
    assert len(lines) == 3


def test_the_recipe_and_the_seed_are_in_the_key(monkeypatch):
    course = mixadd3_course.COURSE
    keys = {sft_base.cache_key(course, 0), sft_base.cache_key(course, 1), sft_base.cache_key(QUICK, 0)}
    monkeypatch.setattr(mixadd3, "demonstration", lambda prompt, rng: f"#{rng.random()}")
    keys.add(sft_base.cache_key(course, 0))
    assert len(keys) == 4
    assert "91839ad00e9a02501c6e3a264419f927" in keys, "a cached base of the demo would be made again"


def test_an_unknown_character_is_an_error_and_not_a_silent_token():
    with pytest.raises(Exception, match="UNK"):  # what the library raises is a bare Exception
        make_tokenizer(mixadd3_course.COURSE)("67*A=")


def test_accuracy_counts_right_and_finished_completions_alone(monkeypatch):
    prompts = ["1+1=", "2+2=", "67+58=", "9+9="]
    said = {"1+1=": "#2", "2+2=": "#5", "67+58=": "7+8+0=15;6+5+1=12#125", "9+9=": "#18"}

    def complete(model, course, same_length):
        asked = ["".join(course.vocabulary[token] for token in ids) for ids in same_length]
        return [course.encode(said[prompt]) + ([] if prompt == "9+9=" else [2]) for prompt in asked]

    monkeypatch.setattr("services.learner.sft_base.training._complete", complete)
    random.shuffle(prompts)
    questions = [mixadd3_course.question(prompt) for prompt in prompts]
    assert greedy_accuracy(None, mixadd3_course.COURSE, questions) == 0.5


def test_the_base_of_two_turns_was_taught_what_episodes_give_it_to_read_and_to_write():
    """Token for token: the prompt, the call as the environment understands it, its answer and the last turn."""
    course, question = products_course.COURSE, "What is 4821*7693?"
    tokenizer = make_tokenizer(course)
    chat, environment = TemplateChat(tokenizer), Calculator()
    opening, call, told, last = (course.encode(part.text) for part in products.good_episode(question))
    history = [Message(role="user", content=question)]

    ids, text = chat.open(history, environment.tools)
    assert ids.tolist() == opening == tokenizer(text)["input_ids"]
    said = chat.read(np.asarray(call, np.int32), context=ids, tools=environment.tools)
    reply = environment.step(said)
    assert reply.messages[0].content == products.answer(question)
    follows = chat.extend(
        context=ids,
        sampled=np.asarray(call, np.int32),
        history=history,
        new=reply.messages,
        tools=environment.tools,
    )
    assert (follows.token_ids.tolist(), follows.rewritten) == (told, False)
    assert chat.read(np.asarray(last, np.int32), context=ids, tools=environment.tools).content == "Answer: 37087953"
    trouble = environment.step(replace(said, tool_calls=(replace(said.tool_calls[0], arguments_json="[]"),))).messages
    assert tokenizer.decode(course.encode(trouble[0].content)) == trouble[0].content


@pytest.mark.usefixtures("quick")
def test_the_base_of_two_turns_is_written_with_its_chat_template_and_its_end(tmp_path):
    stages = tuple(Stage(name=name, lr=2e-3, steps=1) for name in ("ask", "mixed"))
    course = replace(products_course.COURSE, stages=stages, min_accuracy=0.0, longest_completion_tokens=2)
    assert sft_base.build(tmp_path / "base", course=course)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "base")
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.chat_template == products.CHAT_TEMPLATE
    assert json.loads((tmp_path / "base" / "config.json").read_text())["eos_token_id"] == tokenizer.eos_token_id
    assert tokenizer(products.opening("What is 4821*7693?"))["input_ids"] == course.encode(
        products.opening("What is 4821*7693?")
    )
