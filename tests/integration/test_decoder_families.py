"""Every family of decoders in the installed transformers is computed exactly or refused, and docs/models.md says which."""

import pytest

from tests.decoder_families import FAMILIES, outcome
from tests.unit.docs.pages import ROOT

pytestmark = pytest.mark.integration

TABLE = (ROOT / "docs" / "models.md").read_text(encoding="utf-8").partition("| what the learner does |")[2]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_learner_does_with_a_family_what_the_page_says(family: str) -> None:
    rows = [line for line in TABLE.splitlines() if line.startswith("|") and f"`{family}`" in line.replace(",", " ,")]
    assert [row.split("|")[1].strip() for row in rows] == [outcome(family)]
