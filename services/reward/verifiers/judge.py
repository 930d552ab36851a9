"""Grades by asking a model behind an OpenAI-compatible HTTP API (`POST URL/chat/completions`) for a score.

The judge is asked about the samples of a group at once. A reply without a score, a refused call and a slow call are an
`error` or a `timeout`, never a wrong answer; the group is then graded again. A judge that is away or full (no connection,
HTTP 429 or 5xx) is asked again within the sample's limit, then the judge's groups wait (remote.py); so they do when the judge
answers nobody in time, or gives different questions no score. The API key comes from the environment of the reward service,
never from the recipe.
"""

import asyncio
import email.utils
import functools
import http.client
import json
import os
import random
import re
import string
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from services.reward.ports import Grade, Question
from services.reward.remote import Away, Breaker, patiently
from sluice.addresses import is_loopback
from sluice.clock import SystemClock

NAME: Final = "judge"
VERSION: Final = "1"
NETWORK: Final = True

_FIELDS = ("prompt", "completion", "ground_truth")
_AT_ONCE = 64
# Too many requests, and the statuses of proxies and servers that are restarting or full.
_PASSING = (408, 429, 500, 502, 503, 504)
_CLOCK = SystemClock()
_CHANCE = random.Random()  # seeded by the system: the processes must not call in step
_MAX_REPLY_BYTES = 1 << 20
_TEMPLATE = """\
Judge whether the response answers the question rightly. The reference answer is right.

Question:
{prompt}

Reference answer:
{ground_truth}

Response:
{completion}

Think it through, then end with a line `Score: N`, N between 0 (wrong) and 1 (right)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """The settings of a route."""

    url: str
    """The URL without `/chat/completions`, such as http://127.0.0.1:8000/v1."""
    model: str
    template: str = _TEMPLATE
    """The user message; {prompt}, {completion} and {ground_truth} are filled in."""
    score_pattern: str = r"Score:\s*([-+]?\d+(?:\.\d+)?)"
    """A regular expression; the group of its last match in the reply is the score."""
    best_score: float = 1.0
    """The score of full marks; a raw score is the judge's score divided by `best_score`."""
    right_from: float = 1.0
    """The raw score from which an answer is right."""
    api_key_env: str = ""
    """Name of the environment variable with the API key; empty: no key is sent."""
    max_tokens: int = 1024
    timeout_s: float = 8.0
    """Limit of one call; should be below reward.timeout_s."""
    open_after: int = 5
    """Failed calls in a row after which a grader process makes no calls for a while."""
    pause_s: float = 5.0
    """The first pause; each failed call after a pause doubles the pause, up to a minute."""

    def __post_init__(self) -> None:
        """Raises ValueError for settings with which no judge can be asked or no reply be read."""
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise ValueError(f"url: must be http://HOST/... or https://HOST/..., got {self.url!r}")
        for name in ("timeout_s", "max_tokens", "best_score", "open_after", "pause_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: must be > 0, got {getattr(self, name)}")
        try:
            named = {name for _, name, _, _ in string.Formatter().parse(self.template) if name is not None}
        except ValueError as error:
            raise ValueError(f"template: {error}; write {{{{ and }}}} for braces") from error
        if "completion" not in named or not named <= set(_FIELDS):
            raise ValueError(f"template: must have {{completion}}, may have {', '.join(_FIELDS)}, got {sorted(named)}")
        try:
            groups = re.compile(self.score_pattern).groups
        except re.error as error:
            raise ValueError(f"score_pattern: must be a regular expression ({error})") from error
        if groups != 1:
            raise ValueError(f"score_pattern: must have one group, got {groups}")


def prepare() -> None:
    """Nothing is slow here."""


async def grade(*, question: Question, text: str, finished: bool, settings: Settings, deadline_s: float) -> Grade:
    """The judge's score as a share of `best_score`; `deadline_s` is monotonic.

    Raises RuntimeError for a refused call or a reply without a score, TimeoutError for a slow call, Busy for a judge that
    is away or gives nobody a score.
    """
    message = settings.template.format(prompt=question.prompt_text, completion=text, ground_truth=question.ground_truth)

    async def ask(limit_s: float) -> Grade:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(limit_s):  # the call's own limit is one a read, and a reply may trickle
                said = await loop.run_in_executor(_calls(), _ask, message, settings, limit_s)
        except TimeoutError as error:
            raise TimeoutError(str(error) or _slow(settings.url, limit_s)) from error
        return _grade_of(said, settings)

    return await patiently(
        ask,
        question=f"{question.prompt_text}\n{question.ground_truth}",
        breaker=_breaker(settings.url, settings.open_after, settings.pause_s),
        limit_s=settings.timeout_s,
        deadline_s=deadline_s,
        clock=_CLOCK,
        chance=_CHANCE,
    )


def _grade_of(said: str, settings: Settings) -> Grade:
    """The grade in a reply. Raises RuntimeError."""
    scores = re.findall(settings.score_pattern, said)
    if not scores:
        raise RuntimeError(f"judge: no score in the reply, which ends {said[-200:]!r}")
    raw_score = float(scores[-1]) / settings.best_score
    if not 0.0 <= raw_score <= 1.0:
        raise RuntimeError(f"judge: the score must be within 0 and {settings.best_score:g}, got {scores[-1]}")
    return Grade(raw_score=raw_score, acc=float(raw_score >= settings.right_from), extracted=scores[-1])


@functools.cache
def _calls() -> ThreadPoolExecutor:
    """A pool with enough threads for a group: asyncio's own pool has only about as many threads as cores."""
    return ThreadPoolExecutor(max_workers=_AT_ONCE, thread_name_prefix="judge")


@functools.cache
def _breaker(url: str, open_after: int, pause_s: float) -> Breaker:
    return Breaker(open_after=open_after, pause_s=pause_s, clock=_CLOCK, chance=_CHANCE)


def _ask(message: str, settings: Settings, limit_s: float) -> str:
    body = {
        "model": settings.model,
        "messages": [{"role": "user", "content": message}],
        "temperature": 0.0,
        "max_tokens": settings.max_tokens,
    }
    request = urllib.request.Request(
        f"{settings.url.rstrip('/')}/chat/completions", data=json.dumps(body).encode(), headers=_headers(settings)
    )
    try:
        with _opener(settings.url).open(request, timeout=limit_s) as response:
            raw = response.read(_MAX_REPLY_BYTES + 1)
    except urllib.error.HTTPError as error:
        said = f"judge: HTTP {error.code} from {settings.url}: {error.read(300)!r}"
        if error.code in _PASSING:
            raise Away(said, retry_after_s=_retry_after_s(error.headers.get("Retry-After", ""))) from error
        raise RuntimeError(said) from error
    except urllib.error.URLError as error:
        if isinstance(error.reason, TimeoutError):
            raise TimeoutError(_slow(settings.url, limit_s)) from error
        raise Away(f"judge: {settings.url}: {error.reason}") from error
    except TimeoutError as error:  # while reading the reply
        raise TimeoutError(f"judge: {settings.url} did not end its reply within {limit_s:.3g} s") from error
    except (http.client.HTTPException, ConnectionError) as error:  # the judge went away during the call
        raise Away(f"judge: {settings.url}: {type(error).__name__}: {error}") from error
    if len(raw) > _MAX_REPLY_BYTES:
        raise RuntimeError(f"judge: the reply must be <= {_MAX_REPLY_BYTES} bytes")
    return _content(raw)


def _slow(url: str, limit_s: float) -> str:
    return f"judge: no answer from {url} within {limit_s:.3g} s"


@functools.cache
def _opener(url: str) -> urllib.request.OpenerDirector:
    """Goes through the environment's proxy (http_proxy, https_proxy, no_proxy), unless the judge is on this machine."""
    here = is_loopback(urlsplit(url).hostname or "")
    return urllib.request.build_opener(*([urllib.request.ProxyHandler({})] if here else []))


def _retry_after_s(said: str) -> float:
    """Retry-After (RFC 9110, 10.2.3), seconds or a date, as seconds; 0 for neither."""
    if said.strip().isdecimal():
        return float(said)
    try:
        return email.utils.parsedate_to_datetime(said).timestamp() - time.time()
    except ValueError:
        return 0.0


def _headers(settings: Settings) -> dict[str, str]:
    headers = {"Content-Type": "application/json"}
    if settings.api_key_env:
        key = os.environ.get(settings.api_key_env)
        if not key:
            raise RuntimeError(f"judge: {settings.api_key_env} is not set in the reward service's environment")
        headers["Authorization"] = f"Bearer {key}"
    return headers


def _content(raw: bytes) -> str:
    try:
        reply: Any = json.loads(raw)
        content = reply["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise RuntimeError(f"judge: not a chat completion: {raw[:200]!r}") from error
    if not isinstance(content, str):
        raise RuntimeError(f"judge: the reply has no text: {raw[:200]!r}")
    return content
