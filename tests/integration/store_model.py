"""The transitions of the coordinator's redis_store.py as pure functions of an immutable value.

test_store_model.py takes the same calls to the real scripts in a real Redis and compares every answer. A group is its
admission number; it has `tokens_of` completion tokens and cost `lost_of` more.
"""

from typing import NamedTuple

OPEN, QUEUED, ASSIGNED = "open", "queued", "assigned"
TRAINED, FILTERED, STALE = "trained", "filtered_all_wrong", "stale"
GROUP_TERMS = (OPEN, QUEUED, ASSIGNED, TRAINED, FILTERED, STALE)
COUNTERS = (
    "admitted",
    *GROUP_TERMS,
    "generated_tokens",
    "lost_tokens",
    *(f"tokens:{term}" for term in GROUP_TERMS[1:]),
)
_PLACE = {name: place for place, name in enumerate(COUNTERS)}

Batch = tuple[int, ...]
Rows = tuple[tuple[int, str], ...]
"""(group, term) in the order in which they ended."""

FENCED, FORGOT, NOT_QUEUED = "FENCED", "FORGOT", "NOTQUEUED"


class Redis(NamedTuple):
    """Everything that Redis holds of a run."""

    fence: int = 0
    writes: int = 0
    live: tuple[tuple[int, str, int], ...] = ()
    """(group, state, oldest version; -1 while it is open), by group."""
    batches: tuple[tuple[int, Batch], ...] = ()
    commits: tuple[int, ...] = ()
    counters: tuple[int, ...] = (0,) * len(COUNTERS)
    rows: Rows = ()
    rows_in_files: int = 0
    admissions: int = 0
    learner: tuple[int, int] = (0, 0)
    """Fence and process of the learner."""

    def state_of(self, group: int) -> str | None:
        """open, queued or assigned; None when it is not live."""
        return next((state for live, state, _ in self.live if live == group), None)

    def batch(self, step: int) -> Batch | None:
        """The record of a batch."""
        return next((ids for known, ids in self.batches if known == step), None)


class Guard(NamedTuple):
    """What a coordinator sends with every script."""

    fence: int
    seen: int


def tokens_of(group: int) -> int:
    """Completion tokens of the samples of a group."""
    return 3 + group % 2


def lost_of(group: int) -> int:
    """Tokens of samples that were thrown away."""
    return group % 3


def take_over(redis: Redis, *, newest: int) -> Redis:
    """`Store.open`: the fence is raised. `newest` is the largest one that was ever given out; the clock is above it."""
    return redis._replace(fence=max(redis.fence, newest) + 1)


def call(redis: Redis, guard: Guard, name: str, args: tuple) -> tuple[Redis, object]:
    """One script: what Redis is after it, and its answer; Redis is unchanged where that is a refusal."""
    if redis.fence > guard.fence:
        return redis, FENCED
    if redis.fence < guard.fence or redis.writes < guard.seen:
        return redis, FORGOT
    after, answer = SCRIPTS[name](redis, *args)
    return (redis if answer == NOT_QUEUED else after._replace(writes=redis.writes + 1)), answer


def _admit(redis: Redis, group: int) -> tuple[Redis, object]:
    if redis.state_of(group) is not None:
        return redis, None
    after = _set(redis, group, OPEN, -1)._replace(admissions=group + 1)
    return _count(after, admitted=1, open=1), None


def _accept(redis: Redis, group: int, oldest: int) -> tuple[Redis, object]:
    if redis.state_of(group) != OPEN:
        return redis, False
    tokens, lost = tokens_of(group), lost_of(group)
    after = _count(
        _set(redis, group, QUEUED, oldest), open=-1, queued=1, lost_tokens=lost, generated_tokens=tokens + lost
    )
    return _count(after, **{"tokens:queued": tokens}), True


def _end(redis: Redis, group: int, was: str, term: str) -> tuple[Redis, object]:
    if redis.state_of(group) != was:
        return redis, False
    tokens, lost = tokens_of(group), lost_of(group)
    after = _count(_drop(redis, group), **{was: -1, term: 1, f"tokens:{term}": tokens})
    if was == OPEN:
        after = _count(after, lost_tokens=lost, generated_tokens=tokens + lost)
    else:
        after = _count(after, **{f"tokens:{was}": -tokens})
    return after._replace(rows=(*after.rows, (group, term))), True


def _assign(redis: Redis, step: int, ids: Batch) -> tuple[Redis, object]:
    recorded = redis.batch(step)
    if recorded is not None:
        return redis, recorded
    if any(redis.state_of(group) != QUEUED for group in ids):
        return redis, NOT_QUEUED
    after, total = redis, sum(map(tokens_of, ids))
    for group, _, oldest in redis.live:
        if group in ids:
            after = _set(after, group, ASSIGNED, oldest)
    after = _count(after, queued=-len(ids), assigned=len(ids))
    after = _count(after, **{"tokens:queued": -total, "tokens:assigned": total})
    return _record_batch(after, step, ids), ids


def _commit(redis: Redis, step: int, ids: Batch) -> tuple[Redis, object]:
    if step in redis.commits:
        return redis, step
    after, total = redis, sum(map(tokens_of, ids))
    for group in ids:
        after = _drop(after, group)
    after = _count(after, assigned=-len(ids), trained=len(ids))
    after = _count(after, **{"tokens:assigned": -total, "tokens:trained": total})
    rows = tuple((group, TRAINED) for group in ids)
    return after._replace(rows=(*after.rows, *rows), commits=tuple(sorted({*after.commits, step}))), step


def _drop_rows(redis: Redis, before: int, count: int) -> tuple[Redis, object]:
    if redis.rows_in_files != before:
        return redis, None
    return redis._replace(rows=redis.rows[count:], rows_in_files=before + count), None


def _confirm(redis: Redis) -> tuple[Redis, object]:
    return redis, None


def _set_learner(redis: Redis, fence: int, process: int) -> tuple[Redis, object]:
    return redis._replace(learner=(fence, process)), None


def _set_admissions(redis: Redis, admissions: int) -> tuple[Redis, object]:
    return redis._replace(admissions=admissions), None


def _restore_batch(redis: Redis, step: int, ids: Batch, groups: tuple[tuple[int, int], ...]) -> tuple[Redis, object]:
    if redis.batch(step) is not None:
        return redis, None
    if any(redis.state_of(group) == ASSIGNED for group, _ in groups):
        return redis, NOT_QUEUED
    after = redis
    for group, oldest in groups:
        was, tokens = after.state_of(group), tokens_of(group)
        after = _count(after, **({was: -1} if was else {"admitted": 1}))
        after = _count(after, **({"tokens:queued": -tokens} if was == QUEUED else {"generated_tokens": tokens}))
        after = _count(_set(after, group, ASSIGNED, oldest), **{"assigned": 1, "tokens:assigned": tokens})
    return _record_batch(after, step, ids), None


def _rebook(redis: Redis, before: int, rows: Rows) -> tuple[Redis, object]:
    if redis.rows_in_files != before:
        return redis, 0
    after, counted = redis, min(len(rows), len(redis.rows))
    for group, term in rows[counted:]:
        was, tokens, lost = after.state_of(group), tokens_of(group), lost_of(group)
        after = _count(_drop(after, group), **({was: -1} if was else {"admitted": 1}))
        if was in (QUEUED, ASSIGNED):
            after = _count(after, **{f"tokens:{was}": -tokens})
        else:
            after = _count(after, generated_tokens=tokens + lost, lost_tokens=lost)
        after = _count(after, **{term: 1, f"tokens:{term}": tokens})
    return after._replace(rows=after.rows[len(rows) :], rows_in_files=before + len(rows)), len(rows) - counted


SCRIPTS = {
    "admit": _admit,
    "accept": _accept,
    "end": _end,
    "assign": _assign,
    "commit": _commit,
    "drop_rows": _drop_rows,
    "confirm": _confirm,
    "set_learner": _set_learner,
    "set_admissions": _set_admissions,
    "restore_batch": _restore_batch,
    "rebook": _rebook,
}
"""By the name that `call` takes."""


def _set(redis: Redis, group: int, state: str, oldest: int) -> Redis:
    others = [entry for entry in redis.live if entry[0] != group]
    return redis._replace(live=tuple(sorted([*others, (group, state, oldest)])))


def _drop(redis: Redis, group: int) -> Redis:
    return redis._replace(live=tuple(entry for entry in redis.live if entry[0] != group))


def _record_batch(redis: Redis, step: int, ids: Batch) -> Redis:
    others = [entry for entry in redis.batches if entry[0] != step]
    return redis._replace(batches=tuple(sorted([*others, (step, ids)])))


def _count(redis: Redis, **by: int) -> Redis:
    counters = list(redis.counters)
    for name, more in by.items():
        counters[_PLACE[name]] += more
    return redis._replace(counters=tuple(counters))
