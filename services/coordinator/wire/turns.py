"""Turns of an episode between the core and the wire, as queue and files have them."""

from collections.abc import Iterable, Sequence
from itertools import pairwise

from services.coordinator.state.group import Span, Turn
from sluice.rpc.arrays import pack_ids, unpack_ids
from sluice.rpc.chat_messages import message_from, message_to
from sluice.v1 import common_pb2 as pb

FINISH = {
    pb.FINISH_REASON_STOP: "stop",
    pb.FINISH_REASON_LENGTH: "length",
    pb.FINISH_REASON_ABORT: "abort",
    pb.FINISH_REASON_ERROR: "error",
}
FINISH_OF = {name: value for value, name in FINISH.items()}


def turn_to(turn: Turn) -> pb.Turn:
    """Core -> wire."""
    return pb.Turn(
        start_token=turn.start,
        end_token=turn.end,
        finish_reason=FINISH_OF[turn.finish_reason],
        rollout_id=turn.rollout_id,
        seed=turn.seed,
        text=turn.text,
        tools=turn.tools,
        answers=[message_to(message) for message in turn.answers],
        generated_s=turn.generated_s,
        answered_s=turn.answered_s,
        context_token_ids=b"" if turn.context is None else pack_ids(turn.context),
    )


def turn_from(turn: pb.Turn) -> Turn:
    """Wire -> core. Raises InvalidRequest for a context of broken ids."""
    return Turn(
        start=turn.start_token,
        end=turn.end_token,
        finish_reason=FINISH.get(turn.finish_reason, "error"),
        rollout_id=turn.rollout_id,
        seed=turn.seed,
        text=turn.text,
        tools=tuple(turn.tools),
        answers=tuple(message_from(message) for message in turn.answers),
        generated_s=turn.generated_s,
        answered_s=turn.answered_s,
        context=unpack_ids(turn.context_token_ids) if turn.context_token_ids else None,
    )


def fault_of_cover(spans: Sequence[Span], turns: Sequence[Turn], *, tokens: int) -> str:
    """What is wrong with the version spans of so many tokens; empty where they cover the sampled ones, one to one."""
    if not turns and len(spans) == 1 and spans[0].start == 0 and spans[0].end == tokens > 0:
        return ""  # a single answer of one version, as nearly all are
    sampled = [(turn.start, turn.end) for turn in turns] or [(0, tokens)]
    ordered = all(start < end for start, end in sampled) and sampled[0][0] >= 0 and sampled[-1][1] == tokens
    ordered = ordered and all(former[1] <= turn[0] for former, turn in pairwise(sampled))
    if ordered and spans and _joined((span.start, span.end) for span in spans) == _joined(sampled):
        return ""
    where = f"turns {sampled}, " if turns else ""
    return f"{where}version spans {[(span.start, span.end) for span in spans]}"


def _joined(parts: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ranges, those that touch made one."""
    joined: list[tuple[int, int]] = []
    for start, end in parts:
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    return joined
