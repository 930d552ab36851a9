"""docs/weight-push.svg: how a version gets to a rollout, call by call; the calls are RPCs of the protos."""

from dataclasses import dataclass
from typing import Literal

from scripts.pictures.canvas import GOLD, INK, NOTE, Canvas, Style

Actor = Literal["learner", "coordinator", "rollout"]

_AT: dict[Actor, float] = {"learner": 130, "coordinator": 500, "rollout": 870}
_NOTE = Style(size=12, colour=NOTE, anchor="middle")
_CALL = Style(size=13, font="mono", bold=True, anchor="middle")


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """One RPC from one process to another, with what it carries."""

    caller: Actor
    callee: Actor
    rpc: str
    carries: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """What one process does by itself."""

    actor: Actor
    lines: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Transfer:
    """The bytes, which cross no gRPC."""

    note: str


STATE = "READY"
"""The rollout's state at the end."""

STEPS: tuple[Call | Work | Transfer, ...] = (
    Work(actor="learner", lines=("step k trained: gather, pack;", "beside step k + 1: digest")),
    Call(caller="learner", callee="coordinator", rpc="CommitStep", carries="version k + 1, digests"),
    Work(actor="coordinator", lines=("which rollouts are behind?", "one task a rollout")),
    Call(caller="coordinator", callee="learner", rpc="OpenTransfer", carries="or a relaying rollout: payload, secret"),
    Call(caller="coordinator", callee="rollout", rpc="JoinEpoch", carries="new epoch only: store, secret"),
    Call(caller="coordinator", callee="rollout", rpc="ReceiveWeights", carries="manifest, digests of buckets"),
    Transfer(note="whole or as a delta, in buckets, over gloo, NCCL, gRPC or a file, beside generation"),
    Work(actor="rollout", lines=("each bucket verified: staged,", "and passed on by a relay")),
    Call(caller="coordinator", callee="rollout", rpc="ApplyWeights", carries="answer: version, digest, stall in ms"),
    Work(actor="rollout", lines=("whole digest equal: switch", "between two engine steps")),
    Call(caller="coordinator", callee="rollout", rpc="Generate", carries="a probe, if the rollout is new"),
    Work(actor="coordinator", lines=(f"rollout {STATE}", "at version k + 1")),
)

SERVICE_OF: dict[Actor, str] = {
    "learner": "LearnerService",
    "coordinator": "CoordinatorService",
    "rollout": "RolloutService",
}


def calls() -> set[tuple[str, str]]:
    """(service, RPC) of every call in the picture."""
    return {(SERVICE_OF[step.callee], step.rpc) for step in STEPS if isinstance(step, Call)}


def draw() -> str:
    """The picture as SVG."""
    canvas = Canvas(
        title="A push of weights",
        description="The learner publishes a version; the coordinator opens a transfer at the learner and has the "
        "rollout join, receive and apply; the bytes go from the learner to the rollout.",
        width=1000,
    )
    height = 76.0 + sum(_height(step) for step in STEPS)
    for actor, x in _AT.items():
        canvas.line((x, 56), (x, height - 8))
        canvas.box(x - 90, 18, 180, 38, fill="#dbeafe", stroke="#2563eb")
        canvas.text(x, 43, actor, Style(size=16, bold=True, anchor="middle"), within=180)
    y = 66.0
    for step in STEPS:
        _draw_step(canvas, step, y)
        y += _height(step)
    return canvas.svg(height)


def _height(step: Call | Work | Transfer) -> float:
    return 24.0 + 17 * len(step.lines) if isinstance(step, Work) else 52.0


def _draw_step(canvas: Canvas, step: Call | Work | Transfer, y: float) -> None:
    if isinstance(step, Work):
        x = _AT[step.actor]
        canvas.box(x - 112, y + 4, 224, 10 + 17 * len(step.lines), fill="#f8fafc")
        for number, line in enumerate(step.lines):
            canvas.text(x, y + 21 + 17 * number, line, _NOTE, within=224)
    elif isinstance(step, Transfer):
        canvas.arrow([(_AT["learner"] + 4, y + 32), (_AT["rollout"] - 4, y + 32)], colour=GOLD, width=3)
        canvas.box(150, y + 5, 700, 20, fill="#ffffff", stroke="#ffffff")
        canvas.text(500, y + 20, step.note, Style(size=12.5, colour=GOLD, bold=True, anchor="middle"), within=700)
    else:
        start, end = _AT[step.caller], _AT[step.callee]
        toward = 1 if end > start else -1
        canvas.arrow([(start + 3 * toward, y + 32), (end - 3 * toward, y + 32)], colour=INK)
        middle = (start + end) / 2
        canvas.box(middle - 120, y + 4, 240, 22, fill="#ffffff", stroke="#ffffff")
        canvas.text(middle, y + 22, step.rpc, _CALL, within=240)
        canvas.text(middle, y + 47, step.carries, _NOTE, within=300)
