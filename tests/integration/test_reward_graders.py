"""The graders that reach outside of their process: programs under limits, a judge over HTTP, whole groups in workers."""

import asyncio
import contextlib
import dataclasses
import json
import os
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from services.reward.ports import Completion, Job, Question
from services.reward.sandbox.grader_handle import Limits
from services.reward.sandbox.loading import Asked
from services.reward.sandbox.pool import GraderPool
from services.reward.verifiers import code
from sluice.gold_answers import gold_forms
from sluice.run_dir.full_disk import NoRoom
from tests.quiet_server import QuietServer, answering
from tests.small_disk import disk_of, fill
from tests.unit.reward.corpus.cases import read_cases

pytestmark = pytest.mark.integration

SUMS = json.dumps({"inputs": ["1 2\n", "3 4\n"], "outputs": ["3\n", "7\n"]})
ADD = json.dumps({"fn_name": "add", "inputs": [[1, 2], "3\n4"], "outputs": [3, "7"]})
GOOD = "a, b = map(int, input().split())\nprint(a + b)"


def question(ground_truth, data_source="mine"):
    return Question(data_source=data_source, prompt_text="What is 1 + 1?", ground_truth=ground_truth, extra_info={})


def run_code(program, ground_truth=SUMS, **settings):
    limits = code.Settings(**{"cpu_s": 1.0, "wall_s": 60.0, **settings})
    return code.grade(
        question=question(ground_truth), text=f"So:\n```python\n{program}\n```\n", finished=True, settings=limits
    )


@pytest.mark.parametrize(
    ("program", "passed"),
    [
        (GOOD, 1.0),
        ("print(3)", 0.5),
        ("print(8)", 0.0),
        ("def", 0.0),
        (GOOD + "\nimport sys\nsys.exit(1)", 0.0),
        (GOOD + "\nprint()\nprint()", 1.0),
        ("import os\nassert len(os.environ) < 9 and not os.listdir('.')\n" + GOOD, 1.0),
    ],
)
def test_programs_are_run_on_standard_input(program, passed):
    grade = run_code(program, partial_credit=True)
    assert grade.parts == {"passed": passed}
    assert (grade.raw_score, grade.acc) == (passed, float(passed == 1.0))


@pytest.mark.parametrize(
    ("program", "acc"),
    [
        ("def add(a, b): return a + b", 1.0),
        ("class Solution:\n    def add(self, a, b):\n        print('3')\n        return a + b", 1.0),
        ("def add(a, b): return str(a + b)", 0.0),
        ("def add(a, b): raise ValueError", 0.0),
        ("import os\ndef add(a, b): os._exit(0)", 0.0),
        ("print('{\"value\": 3}')", 0.0),
    ],
)
def test_functions_are_called_and_their_values_compared(program, acc):
    assert run_code(program, ADD).acc == acc


def test_a_program_that_prints_nothing_passes_where_nothing_is_expected():
    assert run_code("pass", json.dumps({"inputs": ["1"], "outputs": [""]})).acc == 1.0


def test_the_last_fenced_block_counts_and_without_one_it_is_unparsed():
    text = f"```\nprint(0)\n```\nNo:\n```py\n{GOOD}\n```\nDone."
    assert code.grade(question=question(SUMS), text=text, finished=True).acc == 1.0
    nothing = code.grade(question=question(SUMS), text=GOOD, finished=True)
    assert (nothing.raw_score, nothing.status) == (0.0, "unparsed")


@pytest.mark.parametrize(
    "ground_truth",
    [
        SUMS,
        ADD,
        json.dumps(SUMS),
        json.dumps({"inputs": [["1", "2"], ""], "outputs": [["3", "é'\"\\\\"], "{x}\\n"]}),
        json.dumps({"fn_name": "f", "inputs": [[1], [2]], "outputs": [[["a"]], None]}),
        json.dumps({"fn_name": "f", "inputs": ["1", "2"], "outputs": ["[3]", "true"]}),
        json.dumps({"fn_name": "f", "inputs": ["1"], "outputs": ["{'a': (1, 2)}"]}),
        json.dumps([{"input": "1\n", "output": "2\n", "testtype": "stdin"}]),
        json.dumps(
            [{"input": "1", "output": "2", "testtype": "functional", "metadata": {"func_name": "f"}}],
        ),
    ],
)
def test_the_check_before_training_knows_a_program_that_passes(ground_truth):
    graded = [
        code.grade(question=question(ground_truth), text=text, finished=True) for text in gold_forms(ground_truth)
    ]
    assert [grade.acc for grade in graded] == [0.0] * (len(graded) - 1) + [1.0]
    another = code.grade(question=question(json.dumps({"inputs": ["0"], "outputs": ["0"]})), text=gold_forms(SUMS)[-1],
                         finished=True)  # fmt: skip
    assert another.acc == 0.0


@pytest.mark.parametrize(
    "ground_truth",
    [
        "",
        "34",
        "{}",
        "[" * 100_000,
        '{"fn_name": 3, "inputs": ["1"], "outputs": ["2"]}',
        '{"inputs": ["1"], "outputs": []}',
        '{"inputs": [1], "outputs": [2]}',
    ],
)
def test_a_ground_truth_that_is_no_cases_is_an_error_not_a_zero(ground_truth):
    with pytest.raises(ValueError, match="ground_truth: "):
        run_code(GOOD, ground_truth)


@pytest.mark.needs("tmpfs")
def test_a_right_program_is_not_called_wrong_where_there_is_no_room_for_what_it_prints(tmp_path, monkeypatch):
    with disk_of(tmp_path / "tmp", size_bytes=8 << 20) as folder:
        monkeypatch.setattr(tempfile, "tempdir", str(folder))
        assert run_code(GOOD).acc == 1.0
        ballast = fill(folder, leave_bytes=1 << 16)
        with pytest.raises(NoRoom, match=f"the disk under {folder} is full"):
            run_code(GOOD)
        ballast.unlink()
        assert run_code(GOOD).acc == 1.0


@pytest.mark.parametrize(
    "program",
    [
        "while True: pass",
        "x = bytearray(1 << 40)",
        "while True: print('x' * 10_000)",
        "import os\nos.kill(os.getpid(), 9)",
    ],
)
def test_a_program_that_breaks_its_limits_is_wrong(program):
    assert run_code(program).acc == 0.0


def test_a_program_that_only_waits_is_a_timeout_not_a_zero():
    with pytest.raises(TimeoutError, match="without using its 1 s of CPU time"):
        run_code("import time\ntime.sleep(100)", wall_s=0.5)


def test_a_fork_bomb_reaches_its_limit_and_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # stands in the command line of this test's programs alone
    bomb = "import os, time\ntry:\n    for _ in range(200):\n        if os.fork() == 0: time.sleep(100)\n"
    bomb += "except OSError: pass\nelse: raise SystemExit(1)\n" + GOOD
    assert run_code(bomb).acc == 1.0
    assert not processes_of(str(tmp_path))


@pytest.mark.needs("own-network", "own-processes")
def test_without_network_and_without_survivors_where_namespaces_are_permitted(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # stands in the command line of this test's programs alone
    offline = "import socket\ntry:\n    socket.create_connection(('127.0.0.1', 9), 1)\n"
    offline += "except OSError as error:\n    assert error.errno == 1\n" + GOOD
    assert run_code(offline).acc == 1.0
    runaway = GOOD + "\nimport os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(100)"
    assert run_code(runaway).acc == 1.0
    assert not processes_of(str(tmp_path))


def test_required_isolation_refuses_to_grade_where_there_is_none(monkeypatch):
    monkeypatch.setattr(code, "promises", frozenset)
    with pytest.raises(RuntimeError, match="lets programs reach files, other processes, sockets"):
        run_code(GOOD, isolation="required")
    assert run_code(GOOD, isolation="if_possible").acc == 1.0


def processes_of(name):
    """Command lines of living processes that contain `name` (zombies have none)."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            command = (entry / "cmdline").read_bytes().decode() if entry.name.isdigit() else ""
        except (FileNotFoundError, ProcessLookupError):
            continue
        if name in command and str(os.getpid()) != entry.name:
            found.append(command)
    return found


class Judge(BaseHTTPRequestHandler):
    """An OpenAI-compatible server that says what the last line of the message tells it to."""

    asked: list[dict]
    barrier: threading.Barrier
    over: threading.Event

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append({"path": self.path, "authorization": self.headers["Authorization"], **body})
        wish = body["messages"][0]["content"].rpartition("\n")[2]
        if wish == "together":
            self.barrier.wait(timeout=60)
        if wish == "hang":
            time.sleep(3)
        if wish == "refuse":
            self.send_error(503)
            return
        content = {"none": "I like it.", "together": "Score: 1", "bad": None}.get(
            wish, f"Score: 0.1\nno, Score: {wish}"
        )
        if wish == "trickle":
            self._trickle()
            return
        raw = json.dumps({"choices": [{"message": {"content": content}}]} if wish != "odd" else {}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def _trickle(self):
        """A reply that goes on as long as somebody listens, a byte at a time."""
        self.send_response(200)
        self.send_header("Content-Length", str(1 << 20))
        self.end_headers()
        with contextlib.suppress(OSError):
            while not self.over.wait(0.05):
                self.wfile.write(b" ")

    def log_message(self, *_):
        pass


@pytest.fixture
def judge():
    Judge.asked, Judge.barrier, Judge.over = [], threading.Barrier(16), threading.Event()
    with answering(QuietServer(("127.0.0.1", 0), Judge)) as url:
        yield f"{url}/v1/"
        Judge.over.set()


async def judged(url, *texts, **how):
    (outcomes,) = await judged_in_turn(url, texts, **how)
    return outcomes


async def judged_in_turn(url, *groups, limit_s=10.0, **settings):
    """The outcomes of groups with a question each, one group after the other in one process."""
    chosen = {"url": url, "model": "m", "template": "{prompt}|{ground_truth}\n{completion}", **settings}
    limits = Limits(
        timeout_s=limit_s,
        memory_bytes=4 << 30,
        recycle_after=1000,
        file_bytes=1 << 28,
        environment=("JUDGE_KEY",),
        max_processes=256,
        network=True,
    )
    jobs = [
        Job(
            verifier="services.reward.verifiers.judge",
            settings=chosen,
            question=question(f"{number}"),
            completions=[Completion(text=text, finished=True) for text in texts],
        )
        for number, texts in enumerate(groups, 2)
    ]
    async with GraderPool.open(workers=1, limits=limits) as pool:
        return [(await pool.grade(job)).outcomes for job in jobs]


async def test_the_judges_last_score_counts_as_a_share_of_the_best(judge, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "secret")
    outcomes = await judged(judge, "10", "5", "0", best_score=10, right_from=0.5, api_key_env="JUDGE_KEY")
    assert [(one.grade.raw_score, one.grade.acc) for one in outcomes] == [(1.0, 1.0), (0.5, 1.0), (0.0, 0.0)]
    assert {one["path"] for one in Judge.asked} == {"/v1/chat/completions"}
    assert {one["authorization"] for one in Judge.asked} == {"Bearer secret"}
    assert sorted(one["messages"][0]["content"] for one in Judge.asked) == [
        f"What is 1 + 1?|2\n{n}" for n in (0, 10, 5)
    ]


async def test_what_the_judge_does_not_score_is_ungraded(judge):
    texts = ("none", "refuse", "odd", "bad", "7", "1", "hang")
    outcomes = await judged(judge, *texts, limit_s=1.5)
    assert [one.status for one in outcomes] == ["error", "error", "error", "error", "error", "ok", "timeout"]
    said = ("no score in the reply", "HTTP 503", "not a chat completion", "has no text", "within 0 and 1")
    assert all(text in one.detail for text, one in zip(said, outcomes, strict=False))


@pytest.mark.parametrize("lie", ["none", "odd", "bad", "7"])
async def test_a_judge_that_gives_different_groups_no_score_makes_further_groups_wait(judge, lie):
    first, second, third = await judged_in_turn(judge, [lie], [lie], ["1"])
    assert [(one.status, one.busy) for one in first] == [("error", False)], "it may be this question's own fault"
    assert [one.busy for one in (*second, *third)] == [True, True]
    assert "2 different questions in a row" in third[0].detail
    assert len(Judge.asked) == 2


async def test_a_judge_whose_replies_trickle_is_late_and_then_makes_groups_wait(judge):
    first, second = await judged_in_turn(judge, ["trickle"], ["1"], limit_s=30.0, timeout_s=0.5, open_after=2)
    assert [one.busy for one in (*first, *second)] == [True, True]
    assert "no answer from" in first[0].detail
    assert len(Judge.asked) == 2


async def test_a_judge_that_is_not_there_or_has_no_key_is_an_error(judge):
    gone = await judged("http://127.0.0.1:1/v1", "1")
    keyless = await judged(judge, "1", api_key_env="NO_SUCH_KEY")
    assert [one[0].status for one in (gone, keyless)] == ["error", "error"]
    assert "NO_SUCH_KEY is not set" in keyless[0].detail


async def test_a_group_is_judged_at_once(judge):
    outcomes = await judged(judge, *["together"] * 16, limit_s=60.0, timeout_s=60.0)
    assert [one.status for one in outcomes] == ["ok"] * 16


@pytest.fixture
def group_function(tmp_path):
    path = tmp_path / "groups.py"
    path.write_text(
        "import os, pathlib\n"
        "def score(solution_strs, ground_truth):\n"
        "    first = pathlib.Path(ground_truth)\n"
        "    if 'die' in solution_strs and not first.exists():\n"
        "        first.touch()\n"
        "        os._exit(1)\n"
        "    while 'spin' in solution_strs:\n"
        "        pass\n"
        "    return [len(solution_strs)] * len(solution_strs)\n"
    )
    return f"{path}:score"


async def test_a_group_function_always_sees_the_whole_group(group_function, tmp_path):
    limits = Limits(timeout_s=0.5, memory_bytes=1 << 30, recycle_after=1000, file_bytes=1 << 28, max_processes=256)

    def job(*texts):
        completions = [Completion(text=text, finished=True) for text in texts]
        return Job(verifier=group_function, question=question(str(tmp_path / "first")), completions=completions)

    async with GraderPool.open(workers=1, limits=limits) as pool:
        died_once = await pool.grade(job("a", "die", "b"))
        spinning = await pool.grade(job("a", "spin"))
        again = await asyncio.gather(*(pool.grade(job("a", "b")) for _ in range(3)))
    assert [one.grade.raw_score for one in died_once.outcomes] == [3.0, 3.0, 3.0]
    assert [(one.status, one.detail) for one in spinning.outcomes] == [("timeout", "not graded within 1 s")] * 2
    assert {one.grade.raw_score for graded in again for one in graded.outcomes} == {2.0}


async def test_an_expression_that_takes_for_ever_is_killed_and_is_not_wrong():
    case = next(case for case in read_cases() if case.verdict("math_verify") == "T")
    limits = Limits(timeout_s=4.0, memory_bytes=2 << 30, recycle_after=1000, file_bytes=1 << 28, max_processes=256)
    texts = ("\\boxed{7}", case.completion("math_verify"), "\\boxed{9^{9^{9^{9}}}}", "\\boxed{14/2}")
    job = Job(
        verifier="services.reward.verifiers.math_verify",
        question=question("7"),
        completions=[Completion(text=text, finished=True) for text in texts],
    )
    async with GraderPool.open(workers=1, limits=limits) as pool:
        await pool.grade(dataclasses.replace(job, completions=job.completions[:1]))  # the import is not part of it
        first, killed, tower, last = (await pool.grade(job)).outcomes
    assert (first.status, first.grade.acc, last.status, last.grade.acc) == ("ok", 1.0, "ok", 1.0)
    assert (killed.status, killed.grade) == ("timeout", None)
    assert tower.status in ("timeout", "error") or tower.grade.acc == 0.0


NO_GOLD = {"boxnet", "graph_color", "propositional_logic", "rubiks_cube", "rush_hour"}
"""Tasks with many right answers, whose entries have none."""
LENIENT = {"game_of_life_halting"}
"""Tasks whose own scorer takes any text that begins with the right word."""


@pytest.mark.needs("reasoning-gym")
def test_every_reasoning_gym_task_takes_its_gold_answer_and_refuses_words():
    import reasoning_gym as library

    asked = Asked("services.reward.verifiers.reasoning_gym", {})
    problems = []
    for task in sorted(set(library.factory.DATASETS) - {"composite"}):
        entry = library.create_dataset(task, seed=1, size=1)[0]
        about = question(json.dumps(entry), f"reasoning_gym/{task}")
        texts = (f"<answer>{entry['answer']}</answer>", "<answer>no idea at all</answer>")
        gold, words = (asked.about(about, Completion(text=text, finished=True)) for text in texts)
        if task not in NO_GOLD and gold.get("grade", {}).get("acc") != 1.0:
            problems.append((task, gold))
        if task not in LENIENT and words.get("grade", {}).get("acc") != 0.0:
            problems.append((task, words))
    assert not problems
