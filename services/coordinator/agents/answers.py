"""What agents are answered: OpenAI's chat completions, vLLM's token generation, episodes, errors. Plain JSON trees."""

import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from services.coordinator.agents.asking import Refused, Said
from services.coordinator.agents.session import AgentSession
from services.coordinator.episodes.wanted_episode import Limits
from sluice.environments import ToolCall

_TYPES = {401: "authentication_error", 403: "permission_error", 409: "conflict_error", 429: "rate_limit_error"}


def error_tree(refused: Refused) -> dict[str, Any]:
    """OpenAI's error object."""
    kind = _TYPES.get(refused.status, "server_error" if refused.status >= 500 else "invalid_request_error")
    error = {"message": str(refused), "type": kind, "param": refused.param or None, "code": refused.code}
    return {"error": error}


def models_tree(model: str, *, longest: int) -> dict[str, Any]:
    """GET /v1/models; `longest` sequence in tokens, as vLLM has it."""
    card = {"id": model, "object": "model", "created": 0, "owned_by": "sluice", "max_model_len": longest}
    return {"object": "list", "data": [card]}


def episode_tree(session: AgentSession, *, model: str, limits: Limits, temperature: float) -> dict[str, Any]:
    """An episode for the agent that takes it. An agent that scores also gets what a grader gets."""
    prompt = session.wanted.prompt
    known = {
        "ground_truth": prompt.ground_truth,
        "extra_info": json.loads(prompt.extra_info_json or "{}"),
    }
    return {
        "key": session.key,
        "episode": session.episode_id,
        "environment": prompt.environment,
        "model": model,
        "messages": [{"role": one.role, "content": one.content} for one in prompt.messages],
        "env_args": json.loads(prompt.environment_args_json or "{}"),
        "data_source": prompt.data_source,
        "seed": session.wanted.seed,
        "scores": session.scores,
        "sampling": {"temperature": temperature, "top_p": 1.0},
        "limits": {
            "turns": limits.turns,
            "prompt_tokens": limits.prompt_tokens,
            "sampled_tokens": limits.sampled_tokens,
            "sequence_tokens": limits.episode_tokens,
            "answer_s": limits.answer_s,
        },
    } | (known if session.scores else {})


def chat_tree(
    said: Said, *, model: str, episode: str, asked: dict[str, Any], text_of: Callable[[np.ndarray], str]
) -> dict[str, Any]:
    """A chat completion. With `logprobs` it has those of the sampled tokens, with vLLM's `return_token_ids` the ids."""
    message, ids = said.message, said.sample.token_ids.tolist()
    with_ids = asked.get("return_token_ids") is True
    answer: dict[str, Any] = {
        "role": "assistant",
        "content": message.content or (None if message.tool_calls else ""),
        "refusal": None,
        "tool_calls": [_call_tree(call) for call in message.tool_calls] or None,
    }
    choice = {
        "index": 0,
        "message": {name: value for name, value in answer.items() if name != "tool_calls" or value}
        | ({"reasoning_content": message.reasoning} if message.reasoning else {}),
        "logprobs": _logprobs_tree(said, text_of) if asked.get("logprobs") is True else None,
        "finish_reason": "tool_calls" if message.tool_calls else said.sample.finish_reason,
    }
    return {
        "id": f"chatcmpl-{episode}.{said.turn}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": [choice | ({"token_ids": ids} if with_ids else {})],
        "usage": _usage_tree(said),
    } | ({"prompt_token_ids": said.context.tolist()} if with_ids else {})


def generate_tree(said: Said, *, model: str, episode: str) -> dict[str, Any]:
    """vLLM's answer to /inference/v1/generate, in the forms of its present and of its former versions."""
    ids = said.sample.token_ids.tolist()
    content = [
        {"token": f"token_id:{token}", "token_id": token, "logprob": value, "bytes": None, "top_logprobs": []}
        for token, value in zip(ids, said.sample.logprobs.tolist(), strict=True)
    ]
    return {
        "request_id": f"{episode}.{said.turn}",
        "model": model,
        "choices": [
            {
                "index": 0,
                "logprobs": {"content": content},
                "finish_reason": said.sample.finish_reason,
                "token_ids": ids,
            }
        ],
        "prompt_logprobs": None,
        "kv_transfer_params": None,
        "usage": _usage_tree(said),
    }


def _call_tree(call: ToolCall) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments_json}}


def _logprobs_tree(said: Said, text_of: Callable[[np.ndarray], str]) -> dict[str, Any]:
    ids = said.sample.token_ids
    texts = [(text_of(ids[place : place + 1]), value) for place, value in enumerate(said.sample.logprobs.tolist())]
    content = [{"token": text, "logprob": value, "bytes": None, "top_logprobs": []} for text, value in texts]
    return {"content": content, "refusal": None}


def _usage_tree(said: Said) -> dict[str, int]:
    read, wrote = len(said.context), len(said.sample.token_ids)
    return {"prompt_tokens": read, "completion_tokens": wrote, "total_tokens": read + wrote}
