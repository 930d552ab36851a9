"""Splits the text of a shell script into commands and words, with their quotes. Text in, text out; launch_script.py gives the
words their values.
"""

import re
from collections.abc import Iterator
from typing import Final

PERHAPS: Final = "&&"
"""Stands before the words of a command that runs only after the success, or the failure, of the command before."""
_NAME = re.compile(r"[A-Za-z_]\w*|[@*#?$!0-9-]")


def commands_in(text: str) -> Iterator[list[str]]:
    """The words of each command as written, quotes included; comments and redirections left out, `PERHAPS` put in."""
    words: list[str] = []
    word, at = "", 0
    skip_next = False

    def ended() -> None:
        nonlocal word, skip_next
        if word and not skip_next:
            words.append(word)
        skip_next = skip_next and not word
        word = ""

    while at < len(text):
        character = text[at]
        if character in "'\"`":
            end = _closing(text, at)
            word += text[at:end]
            at = end
        elif character == "\\":
            word += "" if text[at : at + 2] == "\\\n" else text[at : at + 2]
            at += 2
        elif character == "$":
            reference = reference_at(text, at)
            word += reference
            at += len(reference)
        elif text.startswith("((", at) and not word and words in ([], [PERHAPS]):
            end = _bracket(text, at, "(", ")")
            words += ["let", *(f'"{part}"' for part in text[at + 2 : end - 2].split(","))]
            at = end
        elif character == "(" and re.fullmatch(r"\w+\+?=", word):
            end = _bracket(text, at, "(", ")")
            word += text[at:end]
            at = end
        elif character == "#" and not word:
            at = text.find("\n", at) if "\n" in text[at:] else len(text)
        elif (
            redirection := re.compile(r"(?:\d|&)?>>?&?\d*|\d?<{1,3}").match(text, at)
            if not word or word.isdigit()
            else None
        ):
            word = ""
            skip_next = not redirection[0][-1].isdigit()
            at = redirection.end()
        elif character in "\n;|&()":
            ended()
            skip_next = False
            if words not in ([], [PERHAPS]):
                yield words
            words = [PERHAPS] if text[at : at + 2] in ("&&", "||") else []
            at += 2 if words else 1
        elif character.isspace():
            ended()
            at += 1
        else:
            word += character
            at += 1
    ended()
    if words not in ([], [PERHAPS]):
        yield words


def pieces(raw: str) -> Iterator[tuple[str, str]]:
    """The parts of a word without their quotes, each with the quote around it; empty without one."""
    at = 0
    while at < len(raw):
        if raw[at] in "'\"":
            end = _closing(raw, at)
            yield raw[at + 1 : end - 1], raw[at]
            at = end
            continue
        start = at
        while at < len(raw) and raw[at] not in "'\"":
            at += len(reference_at(raw, at)) if raw[at] == "$" else 2 if raw[at] == "\\" else 1
        yield raw[start:at], ""


def _closing(text: str, at: int) -> int:
    """The place behind the quote that closes the one at `at`; the text's end for one that never closes."""
    quote, at = text[at], at + 1
    while at < len(text) and text[at] != quote:
        at += 2 if text[at] == "\\" and quote != "'" else 1
    return min(at + 1, len(text))


def reference_at(text: str, at: int) -> str:
    """The `$X`, `${...}`, `$(...)` at a place; a lone `$` otherwise."""
    if text[at : at + 2] == "${":
        return text[at : _bracket(text, at + 1, "{", "}")]
    if text[at : at + 2] == "$(":
        return text[at : _bracket(text, at + 1, "(", ")")]
    name = _NAME.match(text, at + 1)
    return text[at : name.end()] if name else "$"


def _bracket(text: str, at: int, opening: str, closing: str) -> int:
    """The place behind the bracket that closes the one at `at`."""
    depth = 0
    while at < len(text):
        if text[at] in "'\"" and opening == "(":
            at = _closing(text, at)
            continue
        depth += (text[at] == opening) - (text[at] == closing)
        at += 1
        if depth == 0:
            return at
    return len(text)


def without_quotes(text: str) -> str:
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text
