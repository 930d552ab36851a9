"""What a request may say of sampling: only what the run does anyway.

Log-probabilities are trained as those of the distribution that was sampled from, so the run decides how its tokens are sampled.
A request for another distribution is refused by name, and not served otherwise without a word.
"""

import json
from collections.abc import Mapping
from typing import Any, Final

from services.coordinator.agents.asking import Refused

_ONLY: Final[Mapping[str, tuple[Any, ...]]] = {
    "n": (1,),
    "best_of": (1,),
    "stream": (False,),
    "top_p": (1,),
    "top_k": (-1, 0),
    "min_p": (0,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_penalty": (1,),
    "min_tokens": (0,),
    "top_logprobs": (0,),
    "ignore_eos": (False,),
    "logit_bias": ({},),
    "stop": ("", []),
    "bad_words": ([],),
    "tool_choice": ("auto", "none"),
    "response_format": ({"type": "text"},),
    "continue_final_message": (False,),
    "add_generation_prompt": (True,),
    "chat_template_kwargs": ({},),
}
"""What these fields may be; null and left out always."""
_NEVER: Final = [
    "allowed_token_ids",
    "chat_template",
    "content_parts",
    "features",
    "function_call",
    "functions",
    "guided_choice",
    "guided_grammar",
    "guided_json",
    "guided_regex",
    "logits_processors",
    "modalities",
    "prefill",
    "prompt_logprobs",
    "structured_outputs",
]


def check_sampling(tree: Mapping[str, Any], *, temperature: float) -> None:
    """Raises Refused for a field that asks for other tokens than the run samples."""
    for name in _NEVER:
        if tree.get(name) not in (None, [], {}, ""):
            raise Refused(400, "unsupported_value", f"{name}: is not supported here; leave it out", param=name)
    for name, allowed in (*_ONLY.items(), ("temperature", (temperature,))):
        value = tree.get(name)
        if value is not None and value not in allowed:
            may = " or ".join(json.dumps(one) for one in allowed)
            why = (
                "" if name in ("stream", "n", "tool_choice") else ", because the run decides how its tokens are sampled"
            )
            raise Refused(
                400, "unsupported_value", f"{name}: must be {may} or left out{why}; got {value!r:.80}", param=name
            )
