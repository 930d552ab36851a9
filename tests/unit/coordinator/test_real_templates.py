"""Token-exact episodes over the chat templates that packages on this machine ship, read where they are installed.

vLLM and transformers always have some. Converted models and benchmarks leave more in ~/.cache/sluice (SmolLM2's own, and those
of dozens of families in TRL's package). A template is unknown code here: its marks are found by looking at what it writes.
"""

import ast
import importlib.util
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from services.coordinator.episodes.chat import chat_of
from services.coordinator.episodes.chat_template import as_function, as_openai, ids_of, text_of
from sluice.environments import Message, Tool, ToolCall
from sluice.errors import DataError
from tests.unit.coordinator.chat_templates import tokenizer_of

ADD = Tool(name="add", description="Adds.", parameters={"type": "object", "properties": {"a": {"type": "integer"}}})
USER = Message(role="user", content="What is 1 + 1?")
AGAIN = Message(role="user", content="no")
CALL = Message(role="assistant", content="", tool_calls=(ToolCall(name="add", arguments_json='{"a": 1}', id="c1"),))
ANSWER = Message(role="tool", content="2", name="add", tool_call_id="c1")

_MARK: Final = re.compile(
    r"<\|?[^|<>{}'\"\s]{1,40}\|>|<\|[^|<>{}'\"\s]{1,40}\|?>|<｜[^｜<>{}]{1,40}｜>|</?s>|<(?:start|end)_of_[a-z]+>|\[/?[A-Z_]{3,20}\]"
)
"""What looks like a special token."""

NO_CHAT: Final = {"vllm/kimi_audio", "trl/idefics3", "trl/llava_next", "trl/smolvlm"}
"""Templates whose messages are no text alone: parts with images, or audio."""

NEEDS_A_FAMILY: Final = ("trl/gptoss",)
"""Templates that refuse a turn of the policy as text: `auto` refuses it by name, and `model.renderer` is the way."""


def _folders() -> Iterator[tuple[str, Path]]:
    """Folders of templates; a package is found without importing it."""
    cached = Path.home() / ".cache" / "sluice"
    yield "vllm", _package("vllm") / "transformers_utils" / "chat_templates"
    yield from (("cached", folder) for folder in cached.glob("*") if (folder / "chat_template.jinja").exists())
    yield from (("trl", found) for found in cached.glob("trl-env/lib/python3*/site-packages/trl/chat_templates"))


def _package(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0])


@cache
def templates() -> dict[str, str]:
    """All templates by name; those that TRL has changed for training are no model's own."""
    found = {
        f"{source}/{path.stem.removeprefix('template_') if source != 'cached' else folder.name}": path.read_text(
            "utf-8"
        )
        for source, folder in _folders()
        for path in sorted(folder.glob("*.jinja"))
        if not path.stem.endswith("_training")
    }
    module = _package("transformers") / "models" / "llama4" / "processing_llama4.py"
    for node in ast.parse(module.read_text("utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "chat_template":
            found["transformers/llama4"] = ast.literal_eval(node.value)
    return found


class Model:
    """A tokenizer of bytes with a template's marks, and the template itself."""

    def __init__(self, name: str) -> None:
        self.name, template = name, templates()[name]
        marks = sorted(set(_MARK.findall(template)))
        self.tokenizer: PreTrainedTokenizerFast = tokenizer_of(template, "<eos>", marks=marks)
        self.chat = chat_of(self.tokenizer, template="model")
        written = self.render([USER, Message(role="assistant", content="qvtzwx")], opening=False)
        if "qvtzwx" not in written:
            raise DataError("the template leaves out what the model says")
        behind = re.match(rf"\s*({_MARK.pattern}|<eos>)", written[written.rindex("qvtzwx") + 6 :])
        self.end = behind[1] if behind else ""

    def render(self, chat: list[Message], tools: "list[Tool] | tuple[()]" = (), *, opening: bool = True) -> str:
        functions: Any = [{"type": "function", "function": as_function(tool)} for tool in tools] or None
        messages: Any = [as_openai(message) for message in chat]
        text = self.tokenizer.apply_chat_template(
            messages, tools=functions, tokenize=False, add_generation_prompt=opening
        )
        assert isinstance(text, str)
        return text

    def own_form(self, history: list[Message], turn: Message, tools: list[Tool]) -> str:
        """A turn as the template writes it, without its end; the bare words where it writes the opening otherwise."""
        before, after = self.render(history, tools), self.render([*history, turn], tools, opening=False)
        written = after[len(before) :] if after.startswith(before) else turn.content
        if turn.content:
            return written[: written.rindex(turn.content) + len(turn.content)]
        return written[: written.rindex(self.end)] if self.end and self.end in written else written.rstrip("\n")


@cache
def _model(name: str) -> Model:
    return Model(name)


@pytest.fixture(params=sorted(templates().keys() - NO_CHAT))
def model(request: pytest.FixtureRequest) -> Model:
    return _model(request.param)


@pytest.mark.parametrize("closed", [True, False])
def test_turns_go_on_as_the_template_writes_the_whole_conversation(model: Model, closed: bool) -> None:
    prompt, text = model.chat.open([USER], [])
    assert text_of(model.tokenizer, prompt) == text == model.render([USER])
    context, read, meant = prompt, [USER], [USER]
    for words in ("two", "so 3"):
        said = Message(role="assistant", content=words)
        sampled = ids_of(model.tokenizer, model.own_form(meant, said, []) + (model.end if closed else ""))
        if model.name in NEEDS_A_FAMILY:
            with pytest.raises(DataError, match="the chat template refuses the conversation: TemplateError"):
                model.chat.extend(context=context, sampled=sampled, history=read, new=[AGAIN], tools=[])
            return
        message = model.chat.read(sampled, context=context, tools=[])
        going_on = model.chat.extend(context=context, sampled=sampled, history=read, new=[AGAIN], tools=[])
        read, meant = [*read, message, AGAIN], [*meant, said, AGAIN]
        if going_on.rewritten:
            assert text_of(model.tokenizer, going_on.token_ids) == model.render(read)
            context = going_on.token_ids
        else:
            context = np.concatenate([context, sampled, going_on.token_ids])
            assert text_of(model.tokenizer, context) == model.render(meant)


def test_calls_in_a_form_that_is_read_go_on_with_the_answer_of_the_tool(model: Model) -> None:
    try:
        context, _ = model.chat.open([USER], [ADD])
    except DataError as refusal:
        assert "leaves out the tool 'add'" in str(refusal)  # noqa: PT017
        return
    try:
        sampled = ids_of(model.tokenizer, model.own_form([USER], CALL, [ADD]) + model.end)
    except TypeError:
        return  # takes the arguments of a call as text alone
    message = model.chat.read(sampled, context=context, tools=[ADD])
    if not message.tool_calls:
        return
    assert [(call.name, call.arguments_json) for call in message.tool_calls] == [("add", '{"a": 1}')]
    going_on = model.chat.extend(context=context, sampled=sampled, history=[USER], new=[ANSWER], tools=[ADD])
    whole = going_on.token_ids if going_on.rewritten else np.concatenate([context, sampled, going_on.token_ids])
    assert text_of(model.tokenizer, whole) == model.render([USER, message, ANSWER], [ADD])
