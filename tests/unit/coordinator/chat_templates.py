"""Chat templates in the styles of ten families of models, short, and a tokenizer of bytes that knows their special tokens.

`python -m tests.unit.coordinator.chat_templates` prints the table of docs/environments.md.
"""

from collections.abc import Sequence
from typing import Final

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

_TOOLS: Final = "{% if tools %}{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}{% endif %}"
_CALLS: Final = (
    "{% for call in message.tool_calls or [] %}{{ '\n' }}<tool_call>\n"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}\n</tool_call>{% endfor %}'
)


def _by_header(
    before: str, after: str, *, end: str, first: str = "", policy: str = "assistant", tool: str = "tool"
) -> str:
    """A template whose every turn is: before, role, after, content, end."""
    role = f"{{{{ {{'tool': '{tool}', 'assistant': '{policy}'}}.get(message.role, message.role) }}}}"
    turn = f"{before}{role}{after}{{{{ message.content }}}}{_CALLS}{end}"
    opening = f"{before}{policy}{after}"
    head = f"{first}{{% if tools %}}{before}system{after}{_TOOLS}{end}{{% endif %}}"
    return f"{head}{{% for message in messages %}}{turn}{{% endfor %}}{{% if add_generation_prompt %}}{opening}{{% endif %}}"


_THINKING: Final = (
    "{% if tools %}<|im_start|>system\n" + _TOOLS + "<|im_end|>\n{% endif %}"
    "{% set ns = namespace(last=-1) %}{% for message in messages %}{% if message.role == 'user' %}"
    "{% set ns.last = loop.index0 %}{% endif %}{% endfor %}{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.reasoning_content and loop.index0 > ns.last %}"
    "<think>\n{{ message.reasoning_content }}\n</think>\n\n{% endif %}{{ message.content }}"
    + _CALLS
    + "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Keeps reasoning until the next message of the user."""

_STRIPPED: Final = (
    "<bos>{% for message in messages %}{% if message.role == 'assistant' %}<assistant>"
    "{{ message.content.split('</think>')[-1] }}<eos>{% else %}<{{ message.role }}>{{ message.content }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
"""Never writes reasoning again."""

_BRACKETS: Final = (
    "<bos>{% if tools %}[TOOLS]" + _TOOLS + "[/TOOLS]{% endif %}{% for message in messages %}"
    "{% if message.role == 'assistant' %} {{ message.content | trim }}" + _CALLS + "<eos>"
    "{% elif message.role == 'tool' %}[RESULT]{{ message.content }}[/RESULT]"
    "{% else %}[INST] {{ message.content | trim }}[/INST]{% endif %}{% endfor %}"
)
"""Has no opening of the assistant's turn."""

FAMILIES: Final = {
    "chatml": (_by_header("<|im_start|>", "\n", end="<|im_end|>\n"), "<|im_end|>", "extends"),
    "chatml-thinking": (_THINKING, "<|im_end|>", "splits"),
    "headers": (
        _by_header("<|start_header_id|>", "<|end_header_id|>\n\n", end="<|eot_id|>", first="<bos>", tool="ipython"),
        "<|eot_id|>",
        "extends",
    ),
    "brackets": (_BRACKETS, "<eos>", "extends"),
    "turns": (
        _by_header("<start_of_turn>", "\n", end="<end_of_turn>\n", first="<bos>", policy="model"),
        "<end_of_turn>",
        "extends",
    ),
    "bars": (_by_header("<|", "|>\n", end="<|end|>\n"), "<|end|>", "extends"),
    "reasoner": (_STRIPPED, "<eos>", "splits"),
    "eos-lines": (_by_header("<|", "|>\n", end="<eos>\n"), "<eos>", "extends"),
    "roles": (_by_header("<|start_of_role|>", "<|end_of_role|>", end="<|end|>\n"), "<|end|>", "extends"),
    "plain-words": (_by_header("### ", ":\n", end="<eos>\n\n", first="<bos>"), "<eos>", "extends"),
}
"""Name -> template, end of a turn, and whether reasoning in a turn is kept when the user writes again."""

_SPECIAL: Final = (
    *("<bos>", "<eos>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    *("<start_of_turn>", "<end_of_turn>", "<|end|>", "<|start_of_role|>", "<|end_of_role|>", "<|endoftext|>"),
)
_ADDED: Final = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")


def tokenizer_of(template: str, end: str, *, marks: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """A token a byte, and the special tokens; `marks` are more of them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytes_alone = Tokenizer(models.BPE(vocab={byte: index for index, byte in enumerate(alphabet)}, merges=[]))
    bytes_alone.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bytes_alone.decoder = decoders.ByteLevel()
    bytes_alone.add_special_tokens([*_SPECIAL, *marks])
    bytes_alone.add_tokens(list(_ADDED))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bytes_alone, eos_token=end, bos_token="<bos>")
    tokenizer.add_special_tokens({"additional_special_tokens": [one for one in _SPECIAL if one not in ("<bos>", end)]})
    tokenizer.chat_template = template
    return tokenizer


_STYLES: Final = {
    "chatml": "Qwen2.5, SmolLM2, Hermes",
    "chatml-thinking": "Qwen3",
    "headers": "Llama 3",
    "brackets": "Mistral",
    "turns": "Gemma",
    "bars": "Phi",
    "reasoner": "DeepSeek-R1",
    "eos-lines": "Zephyr",
    "roles": "Granite",
    "plain-words": "Alpaca, Vicuna",
}
_WHAT: Final = {"extends": "one training sequence", "splits": "a sequence of its own after each stripped thought"}


def table() -> str:
    """The table of docs/environments.md."""
    ends = {name: end.replace("|", "\\|") for name, (_, end, _) in FAMILIES.items()}
    lines = [f"| {_STYLES[name]} | `{ends[name]}` | {_WHAT[outcome]} |" for name, (_, _, outcome) in FAMILIES.items()]
    return "\n".join(
        ["| in the style of | end of a turn | a turn with reasoning, then a question |", "|---|---|---|", *lines]
    )


if __name__ == "__main__":
    print(table())
