"""A judge that lies for a while - it talks nonsense, refuses, is slow or trickles - costs some groups, and never the run."""

import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from typing import ClassVar

import pytest

from sluice.v1 import coordinator_pb2 as pb
from tests.integration.coordinator_cases import Cast, Serve
from tests.integration.service_process import flags, running
from tests.quiet_server import QuietServer, answering

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

LIES = 4
"""Calls that the judge lies to, before it begins to do its work."""


class Judge(BaseHTTPRequestHandler):
    """Gives full marks to the completion "right", once it has told its lies."""

    lie: ClassVar[str]
    asked: ClassVar[int]
    over: ClassVar[threading.Event]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        type(self).asked += 1
        if self.asked > LIES:
            self._say("Score: 1" if body["messages"][0]["content"] == "right" else "Score: 0")
        elif self.lie == "nonsense":
            self._say("I would rather not say.")
        elif self.lie == "refusal":
            self.send_error(403)
        elif self.lie == "slowness":
            self.over.wait(30)
        else:
            self._trickle()

    def _say(self, text: str) -> None:
        raw = json.dumps({"choices": [{"message": {"content": text}}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def _trickle(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "600")
        self.end_headers()
        while not self.over.wait(0.05):
            self.wfile.write(b" ")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def judge(request: pytest.FixtureRequest) -> Iterator[str]:
    Judge.lie, Judge.asked, Judge.over = request.param, 0, threading.Event()
    with answering(QuietServer(("127.0.0.1", 0), Judge)) as url:
        yield f"{url}/v1"
        Judge.over.set()


@pytest.mark.parametrize("judge", ["nonsense", "refusal", "slowness", "trickle"], indirect=True)
async def test_a_judge_that_lies_for_a_while_costs_groups_and_never_the_run(
    serve: Serve, cast: Cast, judge: str
) -> None:
    settings = {
        "url": judge,
        "model": "m",
        "template": "{completion}",
        "timeout_s": 1.0,
        "open_after": 2,
        "pause_s": 0.2,
    }
    changes = {"data__val_files": [], "launch__check_reward": False, "coordinator__max_attempts": 1}
    routes = {"mixadd3": {"grader": "judge", "settings": settings}}
    async with serve(**changes, reward__routes=routes, reward__workers=2) as run:
        command = (sys.executable, "-m", "services.reward", "--service-id", "reward-0")
        async with running(*command, *flags(run.address)):
            for each in (cast.rollout, cast.learner):
                await each.register(run)
            for step in range(3):
                await cast.learner.commit(run, step, await cast.learner.batch(run, step, wait_s=60.0))
            status = await run.until(lambda status: status.state == pb.RUN_STATE_FINISHED)
    assert Judge.asked > LIES
    assert (status.ledger.trained, status.ledger.closed) == (12, True)
    assert sum(status.ledger.failed.values()) <= LIES
