"""products for a model whose chat template knows no tools: it asks in plain text, `calc(4821*7693)`, and is told the product.

The environment of recipes/calculator-smollm2.yaml, and an example of one that scores its episodes itself. Before the
question the environment puts what a user would write there: what to do, and one example.
"""

import re
from typing import Final

from sluice.environments import Message, Reply, Row, Score
from sluice.tasks import products

VERSION: Final = "1"

_CALL = re.compile(r"calc\(\s*(\d{1,9})\s*\*\s*(\d{1,9})\s*\)")
_ANSWER = re.compile(r"(?:answer:)?\s*(\d{1,20})\.?", re.IGNORECASE)

_EXAMPLE = "What is 2174*4631?"


class ProductsInText:
    """One episode. The score's part `asked` says whether the calculator was asked."""

    scores = True

    def __init__(self) -> None:
        """Begins with nothing asked."""
        self._answer, self._asked = "", False

    def open(self, row: Row) -> list[Message]:
        """What to do, an example, and the row's question."""
        self._answer = row.ground_truth
        example = products.answer(_EXAMPLE)
        return [
            Message(role="system", content="To multiply, write calc(A*B). You are told the product. Then answer."),
            Message(role="user", content=_EXAMPLE),
            Message(role="assistant", content=f"calc({_EXAMPLE[8:-1]})"),
            Message(role="user", content=example),
            Message(role="assistant", content=products.stated(example)),
            *row.messages,
        ]

    def step(self, message: Message) -> str | Reply:
        """The product, where the first turn asks for one; else the end."""
        call = _CALL.search(message.content)
        if call and not self._asked:
            self._asked = True
            return str(int(call[1]) * int(call[2]))
        found = _ANSWER.fullmatch(message.content.strip())
        said = found[1] if found else ""
        score = float(said == self._answer)
        return Reply(done=True, score=Score(score=score, parts={"asked": float(self._asked)}, extracted=said))
