"""Whether two rows ask the same question, for the warning about evaluation prompts that are trained.

The question is the raw text of a row, before any chat template: all turns but those of the system, one after the other, without
blanks at the ends, and the arguments of its environment, if any. Data source, ground truth and system turns do not count, so
that the same problem in two files is found whatever the files say around it. A question that is worded otherwise is another
question.
"""

import hashlib

from services.coordinator.prompts.rows import PromptRow

_KEY_BYTES = 16


def question_key(row: PromptRow) -> bytes:
    """16 bytes that equal questions share: a million questions collide with probability 1e-27."""
    turns = (
        [row.prompt] if isinstance(row.prompt, str) else [turn.content for turn in row.prompt if turn.role != "system"]
    )
    digest = hashlib.blake2b(digest_size=_KEY_BYTES)
    for turn in (*turns, row.environment_args_json) if row.environment_args_json else turns:
        text = turn.strip().encode("utf-8", errors="surrogatepass")
        digest.update(len(text).to_bytes(8, "little"))
        digest.update(text)
    return digest.digest()
