"""Token-exact episodes: over ten chat templates, what is trained is what was sampled, and the text is the template's."""

import json
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from services.coordinator.episodes.chat import Chat, chat_of
from services.coordinator.episodes.token_stream import TokenStream
from services.coordinator.state.group import Sample, Span
from sluice.environments import Message, Tool, ToolCall
from sluice.errors import ConfigError, DataError
from sluice.policy_version import PolicyVersion
from sluice.rpc.chat_messages import message_from, message_to
from tests.unit.coordinator.chat_templates import FAMILIES, table, tokenizer_of
from tests.unit.docs.pages import ROOT

ADD = Tool(name="add", description="Adds.", parameters={"type": "object", "properties": {"a": {"type": "integer"}}})
USER = Message(role="user", content="What is 1 + 1?")


@cache
def family(name: str) -> tuple[PreTrainedTokenizerFast, Chat, str]:
    template, end, _ = FAMILIES[name]
    tokenizer = tokenizer_of(template, end)
    return tokenizer, chat_of(tokenizer, template="model"), end


def ids_of(tokenizer: PreTrainedTokenizerFast, text: str) -> np.ndarray:
    return np.asarray(tokenizer(text, add_special_tokens=False)["input_ids"], np.int32)


def turn(ids: np.ndarray, *, version: int, finish_reason: str = "stop") -> Sample:
    return Sample(
        index=0,
        token_ids=ids,
        logprobs=-np.arange(1, len(ids) + 1, dtype=np.float32),
        spans=(Span(version=PolicyVersion(lineage="a", number=version), start=0, end=len(ids)),),
        finish_reason=finish_reason,
        text="",
        rollout_id=f"r{version}",
        seed=version,
    )


WORDS = st.text(st.sampled_from("ab 9é\n<|>{}\"'中"), min_size=1, max_size=12).map(str.strip).filter(bool)


@st.composite
def conversations(draw: st.DrawFn) -> list[tuple[str, str, bool, list[Message]]]:
    """Turns: kind, the policy's words, whether the turn is cut, and what the environment answers."""
    turns = []
    for _ in range(draw(st.integers(1, 3))):
        kind = draw(st.sampled_from(["words", "call"]))
        answer = Message(
            role="tool" if kind == "call" else "user", content=draw(WORDS), name="add" if kind == "call" else ""
        )
        turns.append((kind, draw(WORDS), kind == "words" and draw(st.booleans()), [answer]))
    return turns


@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=6, deadline=None)
@given(conversations())
def test_the_stream_is_the_conversation_rendered_at_once_and_trains_what_was_sampled(
    name: str, turns: list[tuple[str, str, bool, list[Message]]]
) -> None:
    tokenizer, chat, end = family(name)
    tools = [ADD] if name != "reasoner" else []
    prompt, _ = chat.open([USER], tools)
    stream, history, sampled, last = TokenStream(prompt), [USER], [], prompt
    for number, (kind, words, cut, answers) in enumerate(turns):
        context = stream.context
        assert context[: len(last)].tolist() == last.tolist(), "nothing that was there has changed"
        call = (
            f"\n<tool_call>\n{json.dumps({'name': 'add', 'arguments': {'a': 1}})}\n</tool_call>"
            if kind == "call"
            else ""
        )
        call = call if tools else ""
        ids = ids_of(tokenizer, words + call + ("" if cut else end))
        message = chat.read(ids, context=context, tools=tools)
        assert [one.name for one in message.tool_calls] == (["add"] if call else [])
        assert message.content == words
        stream.add(turn(ids, version=number))
        sampled.append(ids)
        stream.answered(answers)
        going_on = chat.extend(context=context, sampled=ids, history=history, new=answers, tools=tools)
        assert not going_on.rewritten
        stream.go_on(going_on)
        history += [message, *answers]
        last = np.concatenate([context, ids])
    functions: list[Any] = [
        {"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": ADD.parameters}}
    ]
    chat_as_openai: list[Any] = [as_chat(message) for message in history]
    whole = tokenizer.apply_chat_template(
        chat_as_openai,
        tools=functions if tools else None,
        tokenize=False,
        add_generation_prompt=True,
    )
    if name != "brackets":  # writes a blank of its own before each turn of the policy
        assert tokenizer.decode(stream.context, skip_special_tokens=False) == whole
    sample = stream.to_sample(3, finish_reason="stop", score=None)
    trained = [sample.token_ids[one.start : one.end].tolist() for one in sample.turns]
    assert trained == [ids.tolist() for ids in sampled]
    assert sample.sampled_tokens == stream.sampled_tokens == sum(map(len, sampled))
    mask = np.zeros(len(sample.token_ids), np.bool_)
    for span in sample.spans:
        mask[span.start : span.end] = True
    assert (sample.logprobs[~mask] == 0).all()
    assert (sample.logprobs[mask] < 0).all()
    assert int(mask.sum()) == sample.sampled_tokens
    assert (sample.oldest_version, sample.turns[-1].rollout_id) == (0, f"r{len(turns) - 1}")


def as_chat(message: Message) -> dict[str, Any]:
    found: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        calls = [(call.name, json.loads(call.arguments_json)) for call in message.tool_calls]
        found["tool_calls"] = [{"function": {"name": name, "arguments": arguments}} for name, arguments in calls]
    return found


@pytest.mark.parametrize("name", FAMILIES)
def test_a_template_that_strips_reasoning_splits_the_episode_and_no_other_does(name: str) -> None:
    tokenizer, chat, end = family(name)
    prompt, _ = chat.open([USER], [])
    stream = TokenStream(prompt)
    ids = ids_of(tokenizer, f"<think>\nhm\n</think>\n\ntwo{end}")
    message = chat.read(ids, context=prompt, tools=[])
    assert (message.reasoning, message.content) == ("hm", "two")
    stream.add(turn(ids, version=0))
    again = Message(role="user", content="Sure?")
    going_on = chat.extend(context=prompt, sampled=ids, history=[USER], new=[again], tools=[])
    assert going_on.rewritten == (FAMILIES[name][2] == "splits")
    stream.go_on(going_on)
    second = ids_of(tokenizer, f"yes{end}")
    read = stream.context
    stream.add(turn(second, version=1))
    sample = stream.to_sample(0, finish_reason="stop", score=None)
    if going_on.rewritten:
        assert sample.turns[1].context is not None
        assert sample.turns[1].context.tolist() == read.tolist()
        assert "hm" not in str(tokenizer.decode(read))
        assert sample.token_ids.tolist() == [*ids.tolist(), *second.tolist()]
    else:
        assert sample.turns[1].context is None
        assert read.tolist()[: len(prompt) + len(ids)] == [*prompt.tolist(), *ids.tolist()]


def test_reasoning_is_kept_while_tools_are_asked() -> None:
    tokenizer, chat, end = family("chatml-thinking")
    prompt, _ = chat.open([USER], [])
    ids = ids_of(
        tokenizer,
        f'<think>\nhm\n</think>\n\n<tool_call>\n{{"name": "add", "arguments": {{"a": 1}}}}\n</tool_call>{end}',
    )
    message = chat.read(ids, context=prompt, tools=[ADD])
    assert message.tool_calls == (ToolCall(name="add", arguments_json='{"a": 1}'),)
    answer = Message(role="tool", content="2")
    assert not chat.extend(context=prompt, sampled=ids, history=[USER], new=[answer], tools=[ADD]).rewritten


@pytest.mark.parametrize(
    "text", ["<tool_call>\nnonsense\n</tool_call>", "<tool_call>\n[1]\n</tool_call>", '<tool_call>{"a": 1}</tool_call>']
)
def test_what_is_no_call_stays_text(text: str) -> None:
    tokenizer, chat, _ = family("chatml")
    message = chat.read(ids_of(tokenizer, text), context=ids_of(tokenizer, "?"), tools=[ADD])
    assert (message.content, message.tool_calls) == (text, ())


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "reasoner"])
def test_a_turn_that_is_written_in_a_models_form_is_read_back(name: str) -> None:
    tokenizer, chat, end = family(name)
    context, _ = chat.open([USER], [ADD])
    call = Message(role="assistant", content="", tool_calls=(ToolCall(name="add", arguments_json='{"a": 1}'),))
    for said in (call, Message(role="assistant", content="It is 2.")):
        ids = chat.write(said, history=[USER], tools=[ADD])
        assert ids[-1] == tokenizer.convert_tokens_to_ids(end)
        message = chat.read(ids, context=context, tools=[ADD])
        assert (message.content.strip(), message.tool_calls) == (said.content, said.tool_calls)


def test_what_a_template_cannot_write_is_refused_by_name() -> None:
    tokenizer = tokenizer_of("{% for m in messages %}{{ m.content }}{% endfor %}", "<eos>")
    with pytest.raises(DataError, match="leaves out the tool 'add'"):
        chat_of(tokenizer, template="model").open([USER], [ADD])
    with pytest.raises(DataError, match=r"data.template: none knows no tools, and the environment has 'add'"):
        chat_of(tokenizer, template="none").open([USER], [ADD])
    tokenizer.chat_template = "{{ raise_exception('only users') }}"
    with pytest.raises(DataError, match=r"the chat template refuses the conversation: .*only users"):
        chat_of(tokenizer, template="model").open([USER], [])
    with pytest.raises(ConfigError, match=r"model.renderer: qwen99 does not fit .*No renderer config registered"):
        chat_of(tokenizer, template="model", renderer="qwen99")


def going_on_in(template: str, said: str, new: Message) -> tuple[str, bool]:
    """How a chat goes on after a turn: the text, and whether the history was rewritten."""
    tokenizer = tokenizer_of(template, "<|im_end|>")
    chat = chat_of(tokenizer, template="model")
    prompt, _ = chat.open([USER], [])
    ids = ids_of(tokenizer, said)
    going_on = chat.extend(context=prompt, sampled=ids, history=[USER], new=[new], tools=[])
    return str(tokenizer.decode(going_on.token_ids, skip_special_tokens=False)), going_on.rewritten


def test_the_end_of_a_turn_is_written_once_where_a_template_does_not_close_the_last_message() -> None:
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{% if not loop.last or m.role != 'assistant' %}"
        "<|im_end|>\n{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    again = Message(role="user", content="no")
    goes_on = "\n<|im_start|>user\nno<|im_end|>\n<|im_start|>assistant\n"
    assert going_on_in(template, "two<|im_end|>", again) == (goes_on, False)
    assert going_on_in(template, "tw", again) == (f"<|im_end|>{goes_on}", False)


def test_an_answer_that_a_template_leaves_out_is_refused_by_name() -> None:
    template = (
        "{% for m in messages %}{% if m.role in ['user', 'assistant'] %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    with pytest.raises(DataError, match="leaves out the turn of role 'tool'"):
        going_on_in(template, "two<|im_end|>", Message(role="tool", content="42"))
    with pytest.raises(DataError, match="leaves out what the model says"):
        going_on_in("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}", "two", USER)


def test_a_thought_that_recurs_in_the_chat_is_not_taken_for_kept() -> None:
    strips = FAMILIES["reasoner"][0]
    assert going_on_in(strips, "<think>1</think>two<eos>", Message(role="user", content="1, no"))[1]


def test_a_text_that_the_tokenizer_does_not_know_is_refused_by_name() -> None:
    words = Tokenizer(models.WordLevel(vocab={"1": 0, "\n": 1}, unk_token="?"))
    chat = chat_of(PreTrainedTokenizerFast(tokenizer_object=words), template="none")
    with pytest.raises(DataError, match=r"the tokenizer refuses 'What is 1 \+ 1\?': .*UNK"):
        chat.open([USER], [])


def test_without_a_template_turns_follow_on_new_lines() -> None:
    tokenizer, _, _ = family("plain-words")
    chat = chat_of(tokenizer, template="none")
    prompt, text = chat.open([USER], [])
    going_on = chat.extend(
        context=prompt,
        sampled=prompt[:2],
        history=[USER],
        new=[Message(role="user", content="no")],
        tools=[],
    )
    assert (text, tokenizer.decode(going_on.token_ids), going_on.rewritten) == (USER.content, "\nno", False)


def test_a_family_of_the_renderers_library_extends_what_was_sampled() -> None:
    tokenizer, generic, end = family("chatml-thinking")
    chat = chat_of(tokenizer, template="model", renderer="qwen3")
    prompt, text = chat.open([USER], [])
    assert text == tokenizer.decode(generic.open([USER], [])[0], skip_special_tokens=False)
    call = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
    for closing in (end, ""):  # a turn that ended, and one that was cut
        ids = ids_of(tokenizer, call + closing)
        message = chat.read(ids, context=prompt, tools=[ADD])
        assert [(one.name, json.loads(one.arguments_json)) for one in message.tool_calls] == [("add", {"a": 1})]
        answer = Message(role="tool", content="2", name="add")
        going_on = chat.extend(context=prompt, sampled=ids, history=[USER], new=[answer], tools=[ADD])
        assert not going_on.rewritten
        stream = str(tokenizer.decode(np.concatenate([prompt, ids, going_on.token_ids]), skip_special_tokens=False))
        assert stream.startswith(f"{text}{call}{end}\n<|im_start|>user\n<tool_response>\n2")
        assert stream.endswith("<|im_start|>assistant\n")
    thought = ids_of(tokenizer, f"<think>\nhm\n</think>\n\ntwo{end}")
    again = Message(role="user", content="Sure?")
    assert chat.extend(context=prompt, sampled=thought, history=[USER], new=[again], tools=[]).rewritten
    # The library writes each history with a new question anew; without a thought to strip it is the same one.
    plain = ids_of(tokenizer, f"two{end}")
    assert not chat.extend(context=prompt, sampled=plain, history=[USER], new=[again], tools=[]).rewritten


@pytest.mark.parametrize("renderer", ["auto", "qwen3"])
@pytest.mark.parametrize(
    "call",
    [
        '{"name": "add", "arguments": ' + "[" * 3_000,
        '{"name": "add", "arguments": {"a": ' + "9" * 5_000 + "}}",
        '{"name": "add", "arguments": {"a": "\\ud83d"}}',
        '{"name": "\\ud83d"}',
        '{"name": 5, "arguments": {}}',
        '{"name": ["add"]}',
        '{"name": "' + "a" * 2_000 + '"}',
    ],
    ids=lambda call: call[:34],
)
def test_a_call_that_no_wire_carries_is_what_the_policy_said(call: str, renderer: str) -> None:
    tokenizer, generic, end = family("chatml-thinking")
    chat = generic if renderer == "auto" else chat_of(tokenizer, template="model", renderer=renderer)
    prompt, _ = chat.open([USER], [ADD])
    ids = ids_of(tokenizer, f"<tool_call>\n{call}\n</tool_call>{end}")
    message = chat.read(ids, context=prompt, tools=[ADD])
    assert message.tool_calls == ()
    assert call in message_from(message_to(message)).content


def test_a_message_that_a_family_cannot_write_is_an_error_of_the_data() -> None:
    tokenizer, _, end = family("chatml-thinking")
    chat = chat_of(tokenizer, template="model", renderer="qwen3")
    prompt, _ = chat.open([USER], [])
    half = Message(role="tool", content="\ud83d")
    with pytest.raises(DataError, match="the renderer refuses the conversation: TypeError"):
        chat.extend(context=prompt, sampled=ids_of(tokenizer, end), history=[USER], new=[half], tools=[])


def test_an_end_of_turn_that_is_only_marked_as_special_is_written_once() -> None:
    known, _, end = family("turns")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=known.backend_tokenizer, eos_token="<eos>", bos_token="<bos>")
    tokenizer.chat_template = known.chat_template
    assert end not in tokenizer.all_special_tokens
    chat = chat_of(tokenizer, template="model")
    prompt, _ = chat.open([USER], [])
    ids = ids_of(tokenizer, f"two{end}")
    message = chat.read(ids, context=prompt, tools=[])
    assert message.content == "two"
    going_on = chat.extend(context=prompt, sampled=ids, history=[USER], new=[USER], tools=[])
    text = f"\n<start_of_turn>user\n{USER.content}{end}\n<start_of_turn>model\n"
    assert (tokenizer.decode(going_on.token_ids, skip_special_tokens=False), going_on.rewritten) == (text, False)


def test_a_template_that_strips_the_thought_before_the_last_turn_splits_the_episode_then() -> None:
    template = (
        "{% set ns = namespace(last=-1) %}{% for m in messages if m.role == 'assistant' %}{% set ns.last = ns.last + 1 %}"
        "{% endfor %}{% set ns.at = -1 %}{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
        "{% set ns.at = ns.at + 1 %}{% if m.reasoning_content and ns.at == ns.last %}<think>\n{{ m.reasoning_content }}\n"
        "</think>\n\n{% endif %}{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    tokenizer = tokenizer_of(template, "<|im_end|>")
    chat = chat_of(tokenizer, template="model")
    stream, history, split = TokenStream(chat.open([USER], [])[0]), [USER], []
    for version in range(2):
        context, ids = stream.context, ids_of(tokenizer, f"<think>\nhm {version}\n</think>\n\ntwo<|im_end|>")
        stream.add(turn(ids, version=version))
        stream.answered([USER], 0.1)
        going_on = chat.extend(context=context, sampled=ids, history=history, new=[USER], tools=[])
        stream.go_on(going_on)
        split.append(going_on.rewritten)
        history += [chat.read(ids, context=context, tools=[]), USER]
    assert split == [False, True]
    assert stream.context.tolist() == chat.open(history, [])[0].tolist()


def test_what_a_tool_answered_may_be_written_as_json() -> None:
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | tojson if m.role == 'tool' else m.content }}"
        "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    text, rewritten = going_on_in(template, "two<|im_end|>", Message(role="tool", content='a "b"\nc'))
    assert (text.splitlines()[2], rewritten) == (r'"a \"b\"\nc"<|im_end|>', False)


def test_a_history_that_is_rendered_to_the_same_ids_is_no_rewritten_one() -> None:
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n"
        "{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    goes_on = f"\n<|im_start|>user\n{USER.content}<|im_end|>\n<|im_start|>assistant\n"
    assert going_on_in(template, "two<|im_end|>", USER) == (goes_on, False)
    assert going_on_in(template, "tw", USER)[0] == f"<|im_end|>{goes_on}"


def test_the_page_says_which_styles_of_templates_split_an_episode() -> None:
    assert f"\n{table()}\n" in (ROOT / "docs" / "environments.md").read_text(encoding="utf-8")
