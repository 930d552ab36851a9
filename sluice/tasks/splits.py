"""The three disjoint splits of a procedural task, by a fixed hash of a prompt's text, whatever seed drew the prompt.

`train` is the only split used for training the base and for reinforcement learning, `held_out` is evaluated during a run, and
`fresh` is for a final reading, because settings were never chosen on it.
"""

import hashlib
from typing import Final, Literal

Split = Literal["train", "held_out", "fresh"]

SPLITS: Final[tuple[Split, ...]] = ("train", "held_out", "fresh")

_SPLIT_OF_RESIDUE: Final[dict[int, Split]] = {0: "held_out", 1: "fresh"}


def split_of(prompt: str) -> Split:
    """Returns the split that a prompt's text belongs to: a hash of 0 mod 8 is held out, 1 mod 8 is fresh."""
    digest = hashlib.blake2b(prompt.encode(), digest_size=8).digest()
    return _SPLIT_OF_RESIDUE.get(int.from_bytes(digest, "little") % 8, "train")
