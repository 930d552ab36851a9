"""Every family of decoders in the installed transformers is computed exactly or refused, and docs/models.md says which."""

import re

import pytest

from tests.decoder_families import FAMILIES, outcome
from tests.unit.docs.pages import ROOT

pytestmark = pytest.mark.integration

TABLE = (ROOT / "docs" / "models.md").read_text(encoding="utf-8").partition("| what the learner does |")[2]
ROWS = {
    row.split("|")[1].strip(): re.findall("`([^`]+)`", row.split("|")[3])
    for row in TABLE.partition("\n\n")[0].splitlines()[2:]
}
"""Families by what the page says of them."""

ALWAYS = {family for families in ROWS.values() for family in families[:3]} | {"llama", "qwen2", "qwen3", "gpt_oss"}
"""All of them take half a minute."""


def test_the_page_has_every_family_once() -> None:
    assert sorted(family for families in ROWS.values() for family in families) == list(FAMILIES)


@pytest.mark.parametrize(
    "family", [pytest.param(family, marks=[pytest.mark.long] * (family not in ALWAYS)) for family in FAMILIES]
)
def test_the_learner_does_with_a_family_what_the_page_says(family: str) -> None:
    assert family in ROWS[outcome(family)]
