"""Graders that lean on a library, a program or a model, given what a model under training writes, in their processes.

Whatever the text, the service does not raise, every sample has one of the four statuses and scores exactly if it was
graded, and the same text is judged the same way. The built-in graders that only read text: tests/unit/reward.
"""

import asyncio
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.reward.ports import Completion, Job, Outcome, Question
from services.reward.sandbox.grader_handle import Limits
from services.reward.sandbox.pool import GraderPool
from tests.quiet_server import QuietServer, answering
from tests.unit.reward.hostile import HOSTILE

pytestmark = pytest.mark.integration

LIMITS = Limits(
    timeout_s=2.0, memory_bytes=4 << 30, file_bytes=1 << 28, max_processes=256, recycle_after=10_000, network=True
)
GRADED = ("ok", "unparsed")
FEW = {"deadline": None, "derandomize": True, "suppress_health_check": [HealthCheck.too_slow]}
"""The same texts each time: a run of this file takes seconds, and none takes longer by chance."""


@pytest.fixture(scope="module")
def grade() -> Iterator[Any]:
    """Grades texts in a pool of one process, which lives as long as the module."""
    with asyncio.Runner() as runner:
        opened = GraderPool.open(workers=1, limits=LIMITS)
        pool = runner.run(opened.__aenter__())

        def about(verifier: str, question: Question, *texts: str, **chosen: object) -> list[Outcome]:
            completions = [Completion(text=text, finished=True) for text in texts]
            job = Job(
                verifier=f"services.reward.verifiers.{verifier}",
                settings=chosen,
                question=question,
                completions=completions,
            )
            return list(runner.run(pool.grade(job)).outcomes)

        yield about
        runner.run(opened.__aexit__(None, None, None))


def question(ground_truth: str, data_source: str = "mine") -> Question:
    return Question(data_source=data_source, prompt_text="What is 1 + 1?", ground_truth=ground_truth, extra_info={})


def check(outcomes: list[Outcome], count: int) -> None:
    """Each of `count` texts was graded twice, in two rounds, then a right answer.

    How long something takes is no matter of the text alone, so a timeout may differ.
    """
    *outcomes, right = outcomes
    assert right.grade is not None, right
    assert right.grade.acc == 1.0
    assert len(outcomes) == 2 * count
    for one in outcomes:
        assert one.status in (*GRADED, "timeout", "error")
        assert (one.grade is not None) == (one.status in GRADED)
        if one.grade is not None:
            assert 0.0 <= one.grade.acc <= 1.0
            assert 0.0 <= one.grade.raw_score <= 1.0
        else:
            assert one.detail
    for first, second in zip(outcomes[:count], outcomes[count:], strict=True):
        if "timeout" not in (first.status, second.status):
            assert first == second


@given(texts=st.lists(HOSTILE, min_size=4, max_size=4))
@settings(max_examples=20, **FEW)
def test_math_verify_survives_any_text(grade: Any, texts: list[str]) -> None:
    check(grade("math_verify", question("34"), *texts, *texts, "\\boxed{34}"), len(texts))


ENTRIES = {
    "chain_sum": {"question": "1 + 2", "answer": "3", "metadata": {}},
    "prime_factorization": {"question": "12", "answer": "2 × 2 × 3", "metadata": {"number": 12, "factors": [2, 2, 3]}},
    "countdown": {
        "question": "",
        "answer": "1 + 2",
        "metadata": {"numbers": [1, 2], "target": 3, "expression": "1 + 2"},
    },
    "game_of_life": {"question": "", "answer": "[[0,1],[1,0]]", "metadata": {"grid_size_x": 2, "grid_size_y": 2}},
    "simple_equations": {"question": "x + 1 = 3", "answer": "2", "metadata": {"variable": "x"}},
}
"""Entries by task: scorers that compare text, parse numbers, evaluate expressions, read JSON."""


@pytest.mark.needs("reasoning-gym")
@given(task=st.sampled_from(sorted(ENTRIES)), answers=st.lists(HOSTILE, min_size=8, max_size=8))
@settings(max_examples=20, **FEW)
def test_reasoning_gym_survives_any_answer(grade: Any, task: str, answers: list[str]) -> None:
    texts = [f"<answer>{answer}</answer>" for answer in answers]
    about = question(json.dumps(ENTRIES[task]), f"reasoning_gym/{task}")
    check(grade("reasoning_gym", about, *texts, *texts, f"<answer>{ENTRIES[task]['answer']}</answer>"), len(texts))


PROGRAM_PIECES = st.sampled_from(
    ["print(3)", "\n", "    ", "def f(x):", "return 1", "import os", "os._exit(0)", "raise", "'", "(", "x = 1", "\x00", "é",
     "```", "a, b = map(int, input().split())", "print(a + b)", "print('9' * 10_000_000)", "open('f', 'w')", "\ufffd", "#"]
)  # fmt: skip
SUMS = json.dumps({"inputs": ["1 2\n"], "outputs": ["3\n"]})


@given(programs=st.lists(st.lists(PROGRAM_PIECES, max_size=12).map("".join), min_size=3, max_size=3))
@settings(max_examples=6, **FEW)
def test_the_code_grader_survives_any_program(grade: Any, programs: list[str]) -> None:
    texts = [f"So:\n```python\n{program}\n```\n" for program in programs]
    check(grade("code", question(SUMS), *texts, *texts, "```python\nprint(3)\n```", cpu_s=1.0, wall_s=1.5), len(texts))


class Echo(BaseHTTPRequestHandler):
    """A judge that has nothing to say but what it was shown."""

    wbufsize = -1  # head and body in one packet: two would wait for the reader's delayed acknowledgement

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        raw = json.dumps({"choices": [{"message": {"content": body["messages"][0]["content"]}}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def echo() -> Iterator[str]:
    with answering(QuietServer(("127.0.0.1", 0), Echo)) as url:
        yield f"{url}/v1"


SCORES = st.sampled_from(["Score: 1", "Score: 0.5", "Score: -1", "Score: 7", "Score: 1e999", "Score:", "Score: ٣"])
SAID = st.tuples(HOSTILE, SCORES, HOSTILE).map("".join) | HOSTILE


@given(texts=st.lists(SAID, min_size=6, max_size=6))
@settings(max_examples=8, **FEW)
def test_a_judge_may_say_anything(grade: Any, echo: str, texts: list[str]) -> None:
    chosen = {"url": echo, "model": "m", "template": "{completion}"}
    check(grade("judge", question("2"), *texts, *texts, "Score: 1", **chosen), len(texts))
