"""The ledger as a table for people: every term in groups and in tokens, and whether both sides agree.

The ledger of a live run comes from the coordinator. The ledger of a run directory is counted from the rows of the groups
that have ended, and its two sides from different columns: admissions against rows, tokens of attempts against samples'.
"""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sluice.report.figures import ABSENT, printable
from sluice.report.group_page import aligned
from sluice.report.ledger_tables import open_tables
from sluice.run_dir.ledger_parts import first_row, part_paths
from sluice.v1 import coordinator_pb2 as pb

_NOT_TERMS = frozenset({"admitted", "closed", "failed", "tokens", "generated_tokens", "trained_tokens", "lost_tokens"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Account:
    """Both sides of the ledger; a term of failed groups is `failed:REASON`."""

    admitted: int
    received_tokens: int
    groups: Mapping[str, int]
    tokens: Mapping[str, int]
    """Tokens by term, with the term `lost`, which has tokens but no groups."""
    closed: bool
    note: str = ""


def live_account(ledger: pb.Ledger) -> Account:
    """The account of a live run, from the coordinator's answer."""
    terms = [field.name for field in pb.Ledger.DESCRIPTOR.fields if field.name not in _NOT_TERMS]
    failed = {f"failed:{reason}": count for reason, count in sorted(ledger.failed.items())}
    return Account(
        admitted=ledger.admitted,
        received_tokens=ledger.generated_tokens,
        groups={term: getattr(ledger, term) for term in terms} | failed,
        tokens=dict(ledger.tokens),
        closed=ledger.closed,
    )


def account_of_files(run_dir: Path) -> Account:
    """The account in RUN/ledger. A group that has not ended, or whose row is still in Redis, keeps the account open.

    Raises:
        NotFound: there is no ledger.
    """
    with contextlib.closing(open_tables(run_dir, lists=True)) as tables:
        rows, distinct, admitted, lost = tables.execute(
            "SELECT count(*), count(DISTINCT group_id), coalesce(max(admission) + 1, 0), coalesce(sum(lost_tokens), 0) "
            "FROM groups"
        ).fetchone()
        terms = tables.execute(
            "SELECT term, count(*), sum(tokens) FROM groups GROUP BY term ORDER BY term LIKE 'failed:%', count(*) DESC, term"
        ).fetchall()
        (received,) = tables.execute(
            "SELECT coalesce(sum(coalesce(received, groups.tokens)), 0) FROM groups LEFT JOIN "
            "(SELECT group_id, sum(tokens) AS received FROM attempts GROUP BY group_id) USING (group_id)"
        ).fetchone()
    tokens = {term: count for term, _, count in terms} | {"lost": lost}
    missing = admitted - distinct
    note = f"{missing} groups have no row yet: they have not ended, or their rows wait in Redis" if missing else ""
    if rows != distinct:
        note = f"{rows - distinct} groups have two rows"
    is_whole = rows > first_row(part_paths(run_dir)[-1])  # a file has a row at least, and its name the number before
    if not is_whole and not note:
        note = "a file of the ledger cannot be read, its groups are missing here"
    return Account(
        admitted=admitted,
        received_tokens=received,
        groups={term: count for term, count, _ in terms},
        tokens=tokens,
        closed=is_whole and rows == distinct == admitted and received == sum(tokens.values()),
        note=note,
    )


def ledger_page(account: Account) -> str:
    """The table without empty terms, and a line that says whether the ledger is closed."""
    lines = [("", "groups", "tokens"), ("admitted, received", str(account.admitted), str(account.received_tokens))]
    for term in dict.fromkeys((*account.groups, *account.tokens)):
        groups, tokens = account.groups.get(term, 0), account.tokens.get(term, 0)
        if groups or tokens:
            lines.append((f"  {term}", str(groups) if term in account.groups else ABSENT, str(tokens)))
    state = "closed: both sides agree, in groups and in tokens" if account.closed else "NOT CLOSED"
    note = f": {account.note}" if account.note else ""
    return printable("\n".join([*aligned(lines, right=(1, 2)), f"{state}{note}"]))
