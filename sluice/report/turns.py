"""An episode turn by turn for people: what the policy wrote, which tools it called, what it read then, and how long that took.

`turn_records` makes the JSON objects of samples.jsonl of a payload, `turns_of` reads them; both ends are here, so that the
fields agree.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sluice.report.figures import number
from sluice.v1 import common_pb2


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """One message that the environment answered."""

    role: str
    name: str
    """The tool's, of a tool alone."""
    content: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ShownTurn:
    """One turn of the policy, and the environment's answer."""

    text: str
    tokens: int
    finish_reason: str
    """stop or length."""
    tools: tuple[str, ...]
    """Names of the tools that were called; the text has the arguments."""
    answers: tuple[Answer, ...]
    generated_s: float
    answered_s: float
    versions: str
    """Versions that sampled the turn, oldest first: `a3 a4`."""
    rollout: str
    rewritten: bool
    """Whether the history before the turn is not the former turn's: the turn begins a training sequence of its own then."""


def turn_records(sample: common_pb2.Sample) -> list[dict[str, Any]]:
    """The turns of a sample as JSON objects; none of a single answer."""
    return [asdict(turn) for turn in shown_turns(sample)]


def turns_of(records: Sequence[Mapping[str, Any]]) -> tuple[ShownTurn, ...]:
    """The turns behind `turn_records`. Raises KeyError for a field that is absent."""
    return tuple(
        ShownTurn(
            **{name: record[name] for name in ShownTurn.__slots__ if name not in ("tools", "answers")},
            tools=tuple(record["tools"]),
            answers=tuple(Answer(**{name: one[name] for name in Answer.__slots__}) for one in record["answers"]),
        )
        for record in records
    )


def shown_turns(sample: common_pb2.Sample) -> tuple[ShownTurn, ...]:
    """The turns of a sample; none of a single answer."""
    return tuple(_shown(turn, sample.spans) for turn in sample.turns)


def turn_lines(turns: Sequence[ShownTurn]) -> list[str]:
    """The turns as lines for a page: a heading with the facts, what the policy wrote, what it read."""
    lines: list[str] = []
    for place, turn in enumerate(turns):
        lines += [f"turn {place}: {_facts(turn)}", *_indented(turn.text)]
        if turn.answers:
            lines.append(f"the environment, in {number(turn.answered_s, 2)} s")
        for answer in turn.answers:
            lines += _indented(f"{' '.join(filter(None, (answer.role, answer.name)))}: {answer.content}")
    return lines


def _shown(turn: common_pb2.Turn, spans: Sequence[common_pb2.VersionSpan]) -> ShownTurn:
    inside = [span for span in spans if span.start_token < turn.end_token and span.end_token > turn.start_token]
    return ShownTurn(
        text=turn.text,
        tokens=turn.end_token - turn.start_token,
        finish_reason="length" if turn.finish_reason == common_pb2.FINISH_REASON_LENGTH else "stop",
        tools=tuple(turn.tools),
        answers=tuple(Answer(role=one.role, name=one.name, content=one.content) for one in turn.answers),
        generated_s=turn.generated_s,
        answered_s=turn.answered_s,
        versions=" ".join(dict.fromkeys(f"{span.version.lineage}{span.version.number}" for span in inside)),
        rollout=turn.rollout_id,
        rewritten=bool(turn.context_token_ids),
    )


def _facts(turn: ShownTurn) -> str:
    facts = [
        f"{turn.tokens} tokens in {number(turn.generated_s, 2)} s, {turn.rollout} at version {turn.versions}",
        f"called {', '.join(turn.tools)}" if turn.tools else "",
        "cut" if turn.finish_reason == "length" else "",
        "a sequence of its own, after a history that was rewritten or forked" if turn.rewritten else "",
    ]
    return "; ".join(filter(None, facts))


def _indented(text: str) -> list[str]:
    return [f"  {line}" for line in text.split("\n")]
