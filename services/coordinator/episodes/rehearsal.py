"""One episode without a model: a script calls the first tool, where there is one, and then writes the row's gold answer.

Finds what would fail every episode of an environment: a tool or a role that the chat template leaves out, an answer that breaks
the contract, chance that is not drawn from the seed. Decides nothing about the run.
"""

import json
import time
from collections.abc import Awaitable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import numpy as np

from services.coordinator.episodes.chat import Chat
from services.coordinator.episodes.wanted_episode import Limits
from services.coordinator.state.group import PromptLike
from services.coordinator.state.member import Member
from services.coordinator.state.ports import EnvironmentClient
from sluice.environments import Message, Opening, Reply, Score, Tool, ToolCall
from sluice.errors import ConfigError, DataError, Overloaded
from sluice.gold_answers import as_a_model_writes

T = TypeVar("T")

MOST_TURNS: Final = 4
"""Turns of a rehearsal at most: a call, its answer, and a try after feedback."""
_SHOWN = 300
"""Characters of a text that are shown."""
_DEEPEST = 8
"""Levels of a tool's schema for which arguments are made up."""


@dataclass(kw_only=True, slots=True)
class Rehearsed:
    """What came back in one rehearsal."""

    environment: str
    service_id: str
    opened_s: float
    messages: Sequence[Message]
    tools: Sequence[Tool]
    turns: list[tuple[Message, Reply, float]] = field(default_factory=list)
    """What the script wrote, what the environment answered, and after how many seconds."""
    notes: list[str] = field(default_factory=list)
    """What will hinder training, although the episode came to its end."""

    @property
    def score(self) -> Score | None:
        """The environment's verdict; None where a grader scores."""
        return self.turns[-1][1].score if self.turns else None

    @property
    def done(self) -> bool:
        """Whether the environment ended the episode before the script was at its end."""
        return bool(self.turns) and self.turns[-1][1].done

    def __str__(self) -> str:
        """One line for people."""
        took_s = self.opened_s + sum(seconds for *_, seconds in self.turns)
        return f"{self.environment} on {self.service_id}: {self._end}, {self._verdict}; {took_s:.2f} s"

    def lines(self) -> Iterator[str]:
        """The whole episode for people, a message a line."""
        tools = ", ".join(tool.name for tool in self.tools) or "none"
        yield f"{self.environment} on {self.service_id}: opened in {self.opened_s:.2f} s; tools: {tools}"
        for message in self.messages:
            yield f"  {message.role}: {_shown(message.content)}"
        for said, reply, seconds in self.turns:
            calls = "".join(f" {call.name}({call.arguments_json})" for call in said.tool_calls)
            yield f"  assistant (scripted): {_shown(said.content + calls)}"
            for message in reply.messages:
                yield f"  {message.role} ({seconds:.2f} s): {_shown(message.content)}"
        yield f"  {self._end}: {self._verdict}"

    @property
    def _end(self) -> str:
        return f"{'done' if self.done else 'not done'} at turn {len(self.turns)}"

    @property
    def _verdict(self) -> str:
        if self.score is None:
            return "a grader scores it"
        parts = "".join(f", {name} {value:g}" for name, value in self.score.parts.items())
        acc = "" if self.score.acc is None else f", acc {self.score.acc:g}"
        return f"score {self.score.score:g}{acc}{parts}"


async def rehearse(
    member: Member,
    *,
    environments: EnvironmentClient,
    chat: Chat,
    prompt: PromptLike,
    limits: Limits,
    name: str,
    seed: int,
) -> Rehearsed:
    """Plays one episode of the row on `member`, under the id `name`, and opens it a second time with the same seed.

    Raises ConfigError for what the chat template cannot write and for two openings that differ, SluiceError of the calls.
    """
    rehearsal = _Rehearsal(member, environments, chat, prompt, limits, seed)
    try:
        return await rehearsal.play(f"{name}.0")
    except DataError as error:
        raise ConfigError(f"environments.{prompt.environment}: {error}") from error


class _Rehearsal:
    """One rehearsal."""

    def __init__(
        self,
        member: Member,
        environments: EnvironmentClient,
        chat: Chat,
        prompt: PromptLike,
        limits: Limits,
        seed: int,
    ) -> None:
        self._member, self._environments, self._chat = member, environments, chat
        self._prompt, self._limits, self._seed = prompt, limits, seed

    async def play(self, episode_id: str) -> Rehearsed:
        try:
            opening, seconds = await _timed(self._open(episode_id))
            messages = list(opening.messages) or list(self._row())
            found = Rehearsed(
                environment=self._prompt.environment,
                service_id=self._member.service_id,
                opened_s=seconds,
                messages=messages,
                tools=opening.tools,
            )
            await self._turns(episode_id, found)
        finally:
            await self._close(episode_id)
        await self._open_again(f"{episode_id}-again", opening)
        return found

    async def _turns(self, episode_id: str, found: Rehearsed) -> None:
        """The script's turns and what the environment answers, as far as the budgets reach."""
        limits, history, tools = self._limits, list(found.messages), found.tools
        context, _ = self._chat.open(history, tools)
        if len(context) > limits.prompt_tokens:
            found.notes.append(
                f"the chat that it opens has {len(context)} tokens, data.max_prompt_length is {limits.prompt_tokens}: "
                "such rows fail as prompt_too_long"
            )
        most = min(MOST_TURNS, limits.turns)
        for turn in range(most):
            said = self._said(turn, tools)
            sampled = self._written(said, history, context, found)
            reply, seconds = await _timed(self._step(episode_id, said, turn=turn, last=turn + 1 == most))
            found.turns.append((said, reply, seconds))
            if reply.done or turn + 1 == most:
                return
            history.append(said)
            follows = self._chat.extend(
                context=context, sampled=sampled, history=history[:-1], new=reply.messages, tools=tools
            )
            own = () if follows.rewritten else (context, sampled)
            context = np.concatenate([*own, follows.token_ids])
            history += reply.messages
            if not found.notes and len(context) >= limits.episode_tokens:
                found.notes.append(
                    f"after {turn + 1} turns the episode has {len(context)} tokens, which leave no room for another turn: "
                    f"raise data.max_episode_tokens ({limits.episode_tokens})"
                )

    def _row(self) -> Iterator[Message]:
        return (Message(role=one.role, content=one.content) for one in self._prompt.messages)

    def _said(self, turn: int, tools: Sequence[Tool]) -> Message:
        """The script: a call of the first tool, then the gold answer."""
        if turn or not tools:
            return Message(role="assistant", content=as_a_model_writes(self._prompt.ground_truth))
        call = ToolCall(id="call_1", name=tools[0].name, arguments_json=json.dumps(made_up(tools[0].parameters)))
        return Message(role="assistant", content="", tool_calls=(call,))

    def _written(self, said: Message, history: Sequence[Message], context: np.ndarray, found: Rehearsed) -> np.ndarray:
        """The ids of a turn of the script, as the template has it. Notes a call that could not be read back."""
        sampled = self._chat.write(said, history=history, tools=found.tools)
        if said.tool_calls and not self._chat.read(sampled, context=context, tools=found.tools).tool_calls:
            found.notes.append(
                "the chat template writes calls of tools in a form that is not read as a call: name the model's family in "
                "model.renderer, or have the model write <tool_call>{...}</tool_call>"
            )
        return sampled

    async def _open(self, episode_id: str) -> Opening:
        limits = self._limits
        return await self._environments.open(
            self._member,
            episode_id=episode_id,
            prompt=self._prompt,
            seed=self._seed,
            lease_s=limits.lease_s,
            max_turns=limits.turns,
            timeout_s=limits.answer_s,
        )

    async def _step(self, episode_id: str, said: Message, *, turn: int, last: bool) -> Reply:
        return await self._environments.step(
            self._member,
            episode_id=episode_id,
            environment=self._prompt.environment,
            turn=turn,
            message=said,
            finish_reason="stop",
            last=last,
            timeout_s=self._limits.answer_s,
        )

    async def _close(self, episode_id: str) -> None:
        await self._environments.close(self._member, episode_id=episode_id, timeout_s=self._limits.answer_s)

    async def _open_again(self, episode_id: str, first: Opening) -> None:
        """Raises ConfigError where the same row and seed begin differently."""
        try:
            again = await self._open(episode_id)
        except Overloaded:  # one place, which the first episode has not left yet
            return
        await self._close(episode_id)
        if (list(first.messages), list(first.tools)) != (list(again.messages), list(again.tools)):
            raise ConfigError(
                f"environments.{self._prompt.environment}: two episodes of the same row and seed must begin with the same "
                f"messages and tools, got {_begins(first)} and {_begins(again)}; draw with row.seed alone"
            )


def made_up(schema: Mapping[str, Any], *, depth: int = 0) -> dict[str, Any]:
    """Arguments that a JSON Schema of an object allows: its required properties, with a plain value each. Nobody has
    checked the form of schemas within that schema.
    """
    properties, required = schema.get("properties"), schema.get("required")
    known = properties if isinstance(properties, Mapping) else {}
    names = required if isinstance(required, list | tuple) else ()
    return {name: _value(known.get(name), depth) for name in names if isinstance(name, str)}


def _value(schema: Any, depth: int) -> Any:
    if not isinstance(schema, Mapping) or depth > _DEEPEST:
        return "1"
    for given in ("const", "default"):
        if given in schema:
            return schema[given]
    if isinstance(schema.get("enum"), Sequence) and schema["enum"]:
        return schema["enum"][0]
    made: Mapping[str, Any] = {"integer": 1, "number": 1, "boolean": True, "array": [], "null": None}
    stated = schema.get("type")
    kind = next(iter(stated), None) if isinstance(stated, list | tuple) else stated
    if kind == "object":
        return made_up(schema, depth=depth + 1)
    return made.get(kind, "1") if isinstance(kind, str) else "1"


async def _timed(call: Awaitable[T]) -> tuple[T, float]:
    started = time.monotonic()
    return await call, time.monotonic() - started


def _begins(opening: Opening) -> str:
    return repr(opening.messages[-1].content[:60]) if opening.messages else f"{len(opening.tools)} tools"


def _shown(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}... ({len(text)} characters)"
