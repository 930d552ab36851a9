"""Scores a second of every built-in grader, through the reward service and in this process; and what bad samples cost.

Real: the service's server, its worker processes with all of their limits, gRPC over loopback. Server and caller share this
process, and the workers the machine's cores with it, so the service's rates are on the low side. Simulated: the judge, an
HTTP server that answers at once. As a coordinator does, the caller keeps as many groups under way as the service said it
grades at once.

- A grader by itself: groups of 16, half right. p50 and p99 are of a group through the service and of a sample in process.
- Mixed: 10,000 samples in groups of 16 over the graders of a real mixture (maths, exact matches, programs), clean, and again
  with 1% of the samples, drawn from the groups of their graders, replaced by what hangs or eats memory. Lost is a sample
  without a result; a clean one that is not graded rightly counts as lost too. `reward.timeout_s` is TIMEOUT_S. Once with
  programs that run on as many cases as those of APPS do on average, and once with a single case, which is the hardest
  there is: a bad sample costs as much as ever, and the others next to nothing. So what one bad sample costs is shown too.
"""

import asyncio
import json
import random
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import uvloop

from benchmarks.report import Row
from services.reward.app import make_reward_server, open_graders
from services.reward.ports import Completion, Question
from services.reward.routing import Router
from services.reward.sandbox.loading import Asked
from sluice.config.schema import Config
from sluice.rpc.channel import open_channel
from sluice.telemetry.prometheus import Exporter
from sluice.v1 import common_pb2, reward_pb2, reward_pb2_grpc

SAMPLES = 16
WORKERS = 8
"""Four a core: a sample that hangs holds one of them, and what it burns is shared by all."""
TIMEOUT_S = 4.0
LEAST_RATIO = 0.8
PROGRAM_CASES = (13, 1)
"""Cases of a program, in a mixture each. APPS has 131,777 for 10,000 problems (arXiv 2105.09938, section 3)."""

_GYM = json.dumps({"question": "1 + 2", "answer": "3", "metadata": {"source_dataset": "chain_sum", "source_index": 0}})


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """A grader with an answer that it takes and one that it does not."""

    truth: str
    right: str
    wrong: str
    source: str = ""
    """Data source where it is not the grader's name."""
    share: int = 0
    """Of the mixture: groups in 20."""
    groups: int = 60
    """Measured of the grader by itself."""


def _sums(cases: int) -> str:
    return json.dumps(
        {"inputs": [f"1 {i}\n" for i in range(2, 2 + cases)], "outputs": [f"{1 + i}\n" for i in range(2, 2 + cases)]}
    )


def _program(body: str) -> str:
    return f"```python\n{body}\n```"


CASES = {
    "mixadd3": Case(truth="125", right="7+8+0=15#125", wrong="#126", source="mixadd3"),
    "exact": Case(truth="red", right="Answer: red", wrong="Answer: blue", share=2),
    "multiple_choice": Case(truth="B", right="Answer: B", wrong="Answer: C", share=2),
    "format": Case(truth="", right="<think>a</think><answer>b</answer>", wrong="b"),
    "numeric": Case(truth="3.5", right="\\boxed{\\frac{7}{2}}", wrong="Answer: 3", share=2),
    "gsm8k": Case(truth="34", right="so\n#### 34", wrong="so\n#### 35", share=4),
    "math_dapo": Case(truth="34", right="so\nAnswer: 34", wrong="so\nAnswer: 35", share=5),
    "math_verify": Case(truth="x^2+2x+1", right="$\\boxed{(x+1)^2}$", wrong="$\\boxed{(x+2)^2}$", share=4, groups=12),
    "reasoning_gym": Case(
        truth=_GYM, right="<answer>3</answer>", wrong="<answer>4</answer>", source="reasoning_gym/chain_sum"
    ),
    "code": Case(
        truth=_sums(1),
        right=_program("a, b = map(int, input().split())\nprint(a + b)"),
        wrong=_program("print(4)"),
        share=1,
        groups=6,
    ),
    "judge": Case(truth="", right="right", wrong="wrong", groups=20),
}

PATHOLOGICAL = {
    "a tower of powers": ("math_verify", "$\\boxed{9^{9^{9^{9}}}}$"),
    "an endless loop": ("code", _program("while True: pass")),
    "a sleep without end": ("code", _program("import time\ntime.sleep(1e6)")),
    "a memory bomb": ("code", _program("hoard = []\nwhile True: hoard.append(bytearray(1 << 24))")),
    "a flood of output": ("code", _program("while True: print('x' * 10000)")),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """What one call grades; `sound[i]` is the accuracy of a clean sample, None for a pathological one."""

    grader: str
    truth: str
    texts: list[str]
    sound: list[float | None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Spent:
    """A run."""

    wall_s: float
    each_s: Sequence[float]
    """Of every call."""
    samples: int
    lost: int = 0
    ungraded: int = 0

    def __add__(self, after: "Spent") -> "Spent":
        return Spent(
            wall_s=self.wall_s + after.wall_s,
            each_s=[*self.each_s, *after.each_s],
            samples=self.samples + after.samples,
            lost=self.lost + after.lost,
            ungraded=self.ungraded + after.ungraded,
        )

    @property
    def rate(self) -> float:
        """Samples a second."""
        return self.samples / self.wall_s


def run(
    *,
    most_groups: int = 60,
    mixed: int = 10_000,
    graders: Sequence[str] = tuple(CASES),
    program_cases: Sequence[int] = PROGRAM_CASES,
) -> list[Row]:
    """Every grader, then the mixtures."""
    with _judge() as url:
        rows = [
            row
            for name in graders
            for row in _rows(name, *uvloop.run(_grader(name, min(most_groups, CASES[name].groups), url)))
        ]
    for cases in program_cases:
        rows += _mixed_rows(f"{mixed:,} mixed samples, {cases} cases a program", *uvloop.run(_mixtures(mixed, cases)))
    return rows


def _mixed_rows(what: str, clean: Spent, bad: Spent) -> list[Row]:
    ratio = bad.rate / clean.rate
    each_s = (bad.wall_s - clean.wall_s) / (bad.samples // 100)
    return [
        Row(what=f"{what}, clean", value=clean.rate, unit="scores/s", target="", met=True),
        Row(what=f"{what}, 1% pathological", value=bad.rate, unit="scores/s", target="", met=True),
        Row(
            what=f"{what}: pathological / clean",
            value=ratio,
            unit="",
            target=f">= {LEAST_RATIO}",
            met=ratio >= LEAST_RATIO,
        ),
        Row(
            what=f"{what}: lost",
            value=clean.lost + bad.lost,
            unit="samples",
            target="0",
            met=clean.lost + bad.lost == 0,
        ),
        Row(what=f"{what}: one pathological costs", value=each_s, unit="s", target="", met=True),
        Row(what=f"{what}, 1% pathological: not graded", value=bad.ungraded, unit="samples", target="", met=True),
    ]


def _rows(name: str, service: Spent, alone: Spent) -> Iterator[Row]:
    for where, spent, what in (
        (f"service, {WORKERS} workers", service, "group of 16"),
        ("in process", alone, "sample"),
    ):
        yield Row(what=f"{name}: {where}", value=spent.rate, unit="scores/s", target="", met=spent.lost == 0)
        ordered = sorted(1e3 * each for each in spent.each_s)
        for mark in (50, 99):
            value = ordered[min(len(ordered) - 1, len(ordered) * mark // 100)]
            yield Row(what=f"{name}: {where}, p{mark} of a {what}", value=value, unit="ms", target="", met=True)
    yield Row(what=f"{name}: service / in process", value=service.rate / alone.rate, unit="", target="", met=True)


async def _grader(name: str, groups: int, url: str) -> tuple[Spent, Spent]:
    """Through the service, and in this process."""
    async with _service(url) as score:
        await asyncio.gather(*(score(_clean(name)) for _ in range(WORKERS)))
        through = await _spend(score, [_clean(name) for _ in range(groups)])
    return through, await asyncio.to_thread(_in_process, name, groups, url)


async def _mixtures(samples: int, program_cases: int) -> tuple[Spent, Spent]:
    """Clean, and with 1% of the samples replaced; one half of the clean run before it, one after: a machine's speed drifts."""
    chance = random.Random(0)
    names = [name for name, case in CASES.items() for _ in range(case.share)]
    clean = [_clean(names[index % len(names)]) for index in range(samples // SAMPLES)]
    clean = [replace(group, truth=_sums(program_cases)) if group.grader == "code" else group for group in clean]
    chance.shuffle(clean)
    half = len(clean) // 2
    spent: list[Spent] = []
    for groups in (clean[:half], _spoilt(clean, samples // 100, chance), clean[half:]):
        async with _service("http://127.0.0.1:9/v1") as score:
            for name in dict.fromkeys(names):
                await asyncio.gather(*(score(_clean(name)) for _ in range(WORKERS)))
            spent.append(await _spend(score, groups))
    before, bad, after = spent
    return before + after, bad


def _clean(name: str) -> Group:
    case = CASES[name]
    half = SAMPLES // 2
    return Group(grader=name, truth=case.truth, texts=[case.right, case.wrong] * half, sound=[1.0, 0.0] * half)


def _spoilt(clean: Sequence[Group], count: int, chance: random.Random) -> list[Group]:
    """The same groups, but for `count` samples of the graders that can be hurt."""
    groups, kinds = list(clean), list(PATHOLOGICAL.values())
    for number in range(count):
        grader, text = kinds[number % len(kinds)]
        at, place = chance.choice(
            [
                (at, place)
                for at, group in enumerate(groups)
                if group.grader == grader
                for place, sound in enumerate(group.sound)
                if sound is not None
            ]
        )
        old = groups[at]
        texts, sound = [*old.texts], [*old.sound]
        texts[place], sound[place] = text, None
        groups[at] = replace(old, texts=texts, sound=sound)
    return groups


Score = Callable[[Group], Any]


@asynccontextmanager
async def _service(url: str) -> AsyncIterator[Score]:
    """A reward service on loopback; gives a call that grades a group."""
    config = _config(url)
    router = Router(config.reward.routes)
    async with open_graders(config, router) as pools:
        server = await make_reward_server(config, router, pools, Exporter(service="reward"))
        channel = open_channel(f"127.0.0.1:{await server.start(bind='127.0.0.1', port=0)}")
        stub = reward_pb2_grpc.RewardServiceStub(channel)

        async def score(group: Group) -> Any:
            return (await stub.Score(_request(group), timeout=600.0)).results

        try:
            yield score
        finally:
            await channel.close()
            await server.stop(grace_s=1.0)


async def _spend(score: Score, groups: Sequence[Group]) -> Spent:
    """All groups, WORKERS at a time."""
    waiting, each_s, lost, ungraded = iter(groups), list[float](), 0, 0

    async def carry() -> None:
        nonlocal lost, ungraded
        for group in waiting:
            begun_s = time.perf_counter()
            results = await score(group)
            each_s.append(time.perf_counter() - begun_s)
            lost += len(group.texts) - len(results)
            for result, sound in zip(results, group.sound, strict=True):
                graded = result.status in (common_pb2.REWARD_STATUS_OK, common_pb2.REWARD_STATUS_UNPARSED)
                lost += sound is not None and not (graded and result.acc == sound)
                ungraded += not graded

    begun_s = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for _ in range(WORKERS):
            tasks.create_task(carry())
    return Spent(
        wall_s=time.perf_counter() - begun_s,
        each_s=each_s,
        samples=sum(len(group.texts) for group in groups),
        lost=lost,
        ungraded=ungraded,
    )


def _in_process(name: str, groups: int, url: str) -> Spent:
    """The same grader without a service, on one core."""
    (part,) = Router(_config(url).reward.routes).parts_of(_source(name))
    asked, group, each_s = Asked(part.verifier, part.settings), _clean(name), list[float]()
    completions = [Completion(text=text, finished=True) for text in group.texts]
    question = _question(name)
    begun_s = time.perf_counter()
    for _ in range(groups):
        if asked.whole:
            at_s = time.perf_counter()
            asked.about_all(question, completions, timeout_s=TIMEOUT_S)
            each_s += [(time.perf_counter() - at_s) / SAMPLES] * SAMPLES
            continue
        for completion in completions:
            at_s = time.perf_counter()
            asked.about(question, completion)
            each_s.append(time.perf_counter() - at_s)
    return Spent(wall_s=time.perf_counter() - begun_s, each_s=each_s, samples=groups * SAMPLES)


def _question(name: str) -> Question:
    return Question(data_source=_source(name), prompt_text="", ground_truth=CASES[name].truth, extra_info={})


def _source(name: str) -> str:
    return CASES[name].source or f"mine/{name}"


def _request(group: Group) -> reward_pb2.ScoreRequest:
    return reward_pb2.ScoreRequest(
        data_source=_source(group.grader),
        ground_truth=group.truth,
        items=[
            reward_pb2.ScoreItem(index=i, text=text, response_tokens=8, finish_reason=common_pb2.FINISH_REASON_STOP)
            for i, text in enumerate(group.texts)
        ],
    )


def _config(url: str) -> Config:
    settings: dict[str, dict[str, Any]] = {
        "format": {"tags": ["think", "answer"]},
        "code": {"cpu_s": TIMEOUT_S / 2, "wall_s": 0.8 * TIMEOUT_S},
        "judge": {"url": url, "model": "judge", "template": "{completion}"},
    }
    routes = {
        _source(name): {"grader": name, "settings": settings.get(name, {})} for name in CASES if not CASES[name].source
    }
    return Config.model_validate(
        {
            "model": {"path": "unused"},
            "data": {"train_files": ["mixadd3:train"]},
            "reward": {"workers": WORKERS, "timeout_s": TIMEOUT_S, "routes": routes},
        }
    )


class _Judge(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # one packet an answer

    def do_POST(self) -> None:
        """One point where the answer says so."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        score = int(body["messages"][0]["content"] == "right")
        raw = json.dumps({"choices": [{"message": {"content": f"Score: {score}"}}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


class _JudgeServer(ThreadingHTTPServer):
    daemon_threads, block_on_close = True, False
    request_queue_size = WORKERS * SAMPLES
    """All calls of all workers arrive at once; a full backlog resets them, and the graders rightly push back."""


@contextmanager
def _judge() -> Iterator[str]:
    with _JudgeServer(("127.0.0.1", 0), _Judge) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1"
        finally:
            server.shutdown()
            thread.join()
