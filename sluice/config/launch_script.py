"""Reads the settings out of a shell script that launches verl, as the script stands. Nothing of the script is run.

Understood: comments, continued lines, quotes, variables and arrays that the script assigns (`${X:-default}` too), whole-number
arithmetic, redirections and pipes behind the command. A variable that the script does not assign is taken from the
environment. What only a shell can know - commands in `$(...)`, arguments of the script, assignments under a condition - stays
in the value as it is written, so that from_verl refuses the value by name, unless it makes no difference.
"""

import ast
import operator
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from sluice.errors import ConfigError

_SETTING = re.compile(r"\+{0,2}[A-Za-z_][\w.@/-]*\.[\w.@/-]+=", re.ASCII)
_PLAIN_SETTING = re.compile(r"[+~]{0,2}[A-Za-z_]\w*=")
_SPEAKERS = frozenset({"echo", "printf", "log"})
_ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)(\+?)=(.*)", re.DOTALL)
_NAME = re.compile(r"[A-Za-z_]\w*|[@*#?$!0-9-]")
_BRACED = re.compile(r"([A-Za-z_]\w*|[@*#?$!0-9-])(\[[@*]\])?(?:(:?[-=+])(.*))?", re.DOTALL)
_OPENING = frozenset({"if", "for", "while", "until", "case", "{"})
_CLOSING = frozenset({"fi", "done", "esac", "}"})
_WORDS_BEFORE = frozenset(
    {"function", "then", "do", "else", "elif", "export", "declare", "local", "readonly", "exec", "nohup", "time"}
)
_PERHAPS: Final = "&&"
"""Stands before the words of a command that runs only after the success, or the failure, of the command before."""
_HERE_DOCUMENT = re.compile(r"<<-?[ \t]*(['\"]?)(\w+)\1[^\n]*\n(?:.*?\n)?[ \t]*\2[ \t]*(?=\n|\Z)", re.DOTALL)
_YAML = re.compile(r"(?:[ \t]*(?:#[^\n]*)?\n)*(?:- |['\"+\w.-]+[ \t]*:(?:\s|\Z))")
_WHOLE_VARIABLE = re.compile(r"\$\{?([A-Za-z_]\w*)(?:\[[@*]\])?\}?")
_OPERATORS: Final = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.floordiv,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod,
}  # fmt: skip
_LOOKS = re.compile(
    r"^#!|^[ \t]*(?:set +[-+]|export +\w+=|(?:nohup +|exec +|\w+=\S* +)*(?:python3?|torchrun|ray|bash)\b)"
    r"|^[ \t]*[A-Za-z_]\w*=\S*[ \t]*$",
    re.MULTILINE,
)


def looks_like_script(text: str) -> bool:
    """Whether a text is a shell script: it has a shebang, sets variables or calls a program."""
    return text.startswith("#!") or (bool(_LOOKS.search(text)) and not _YAML.match(text))


def settings_of(text: str, *, where: str, environ: Mapping[str, str]) -> list[str]:
    """The KEY=VALUE words of the script's one command with settings. Raises ConfigError where there is none, or several."""
    reader = _Reader(environ=environ)
    commands: list[list[str]] = []
    for continues, words in reader.commands(text):
        for word in words:
            if not _SETTING.match(word) and not _PLAIN_SETTING.match(word):
                raise ConfigError(f"{where}: {word}: only a shell can know it; write its settings into the command")
        if continues and commands:
            commands[-1] += words
        elif words:
            commands.append(words)
    if not commands:
        raise ConfigError(f"{where}: has no command with settings of verl (data.train_files=...)")
    if len(commands) > 1:
        raise ConfigError(
            f"{where}: has {len(commands)} commands with settings of verl; leave one in a copy of the script"
        )
    return commands[0]


@dataclass(kw_only=True, slots=True)
class _Reader:
    """Goes through a script once, and keeps the variables that are known."""

    environ: Mapping[str, str]
    _values: dict[str, str | None] = field(default_factory=dict)
    """None for a variable that only a shell can know."""
    _arrays: dict[str, list[str]] = field(default_factory=dict)
    _depth: int = 0

    def commands(self, text: str) -> Iterator[tuple[bool, list[str]]]:
        """The settings of every command, and whether it begins with one: then a comment tore it from the command before.

        With settings stand the variables that may hold more settings and that only a shell can know.
        """
        for raw in _commands(_HERE_DOCUMENT.sub("", text.replace("\r\n", "\n"))):
            perhaps = raw[0] == _PERHAPS
            words = raw[1:] if perhaps else raw
            while words and words[0] in _WORDS_BEFORE | _OPENING | _CLOSING:
                self._depth += (words[0] in _OPENING) - (words[0] in _CLOSING and self._depth > 0)
                if words[0] in ("for", "case", "function"):
                    self._forget(words[1:2])
                    words = []
                words = words[1:]
            while words and (match := _ASSIGNMENT.fullmatch(words[0])) and not _SETTING.match(words[0]):
                self._assign(match[1], match[3], more=bool(match[2]), perhaps=perhaps or self._depth > 0)
                words = words[1:]
            if words:
                expanded = [one for word in words for one in self._words(word)]
                settings = self._settings_among(expanded)
                if settings and words[0] not in _SPEAKERS:
                    yield bool(_SETTING.match(expanded[0])), settings

    def _forget(self, names: Sequence[str]) -> None:
        for name in names:
            self._values[name] = None

    def _settings_among(self, words: Sequence[str]) -> list[str]:
        """The settings among a command's words, and what may hold more; behind the first setting `seed=1` is one too."""
        first = next((place for place, word in enumerate(words) if _SETTING.match(word)), None)
        if first is None:
            return []
        return [
            word
            for place, word in enumerate(words)
            if _SETTING.match(word)
            or (place > first and _PLAIN_SETTING.match(word))
            or (place > 0 and self._is_lost(word))
        ]

    def _is_lost(self, word: str) -> bool:
        """Whether a word is a command's output, or a variable that the script sets to what only a shell can know."""
        if word.startswith(("$(", "`")):
            return True
        match = _WHOLE_VARIABLE.fullmatch(word)
        return match is not None and match[1] in self._values and self._values[match[1]] is None

    def _assign(self, name: str, raw: str, *, more: bool, perhaps: bool) -> None:
        """Takes an assignment; one that a condition decides leaves the variable unknown, unless it changes nothing."""
        if raw.startswith("(") and raw.endswith(")") and perhaps:
            self._arrays.pop(name, None)
            self._values[name] = None
            return
        if raw.startswith("(") and raw.endswith(")"):
            items = [one for words in _commands(raw[1:-1]) for word in words for one in self._words(word)]
            self._arrays[name] = [*(self._arrays.get(name, []) if more else []), *items]
            return
        value = self._expanded(raw)
        before = (self._values.get(name) or "") if more else ""
        self._values[name] = None if perhaps and self._value(name) != before + value else before + value

    def _words(self, raw: str) -> list[str]:
        """The words that a written word becomes: several for an array, none for `$@`, which a bare script has not."""
        bare = raw.strip("\"'")
        if bare in ("$@", "${@}", "$*", "${@:1}", "${*}"):
            return []
        if array := re.fullmatch(r"\$\{(\w+)\[[@*]\]\}", bare):
            return list(self._arrays.get(array[1], [raw]))
        value = self._expanded(raw)
        if re.fullmatch(r"\$\{?\w+\}?", raw) and self._is_known(
            raw.strip("${}")
        ):  # unquoted: the shell splits its words
            return [one for words in _commands(value) for word in words for one in [self._unquoted(word)]]
        return [value]

    def _is_known(self, name: str) -> bool:
        return self._value(name) is not None

    def _value(self, name: str) -> str | None:
        if name in self._values:
            return self._values[name]
        if name in self._arrays:
            return (self._arrays[name] or [""])[0]
        return self.environ.get(name)

    def _unquoted(self, word: str) -> str:
        return "".join(text for text, _ in _pieces(word))

    def _expanded(self, raw: str) -> str:
        """The word without quotes, with every variable that is known."""
        parts = [text if quote == "'" else self._substituted(text, quote) for text, quote in _pieces(raw)]
        value = "".join(parts)
        if value.startswith("~/") and not raw.startswith(("'", '"')):
            value = self.environ.get("HOME", "~") + value[1:]
        return value

    def _substituted(self, text: str, quote: str = "") -> str:
        """A part of a word with its variables; in double quotes a backslash escapes only what is special there."""
        out: list[str] = []
        at = 0
        while at < len(text):
            if text[at] == "\\" and at + 1 < len(text) and (not quote or text[at + 1] in '$`"\\\n'):
                out.append("" if text[at + 1] == "\n" else text[at + 1])
                at += 2
            elif text[at] == "$":
                written = _reference(text, at)
                out.append(self._meaning(written))
                at += len(written)
            else:
                out.append(text[at])
                at += 1
        return "".join(out)

    def _meaning(self, written: str) -> str:
        """The value of `$X`, `${X...}` or `$((...))`; what only a shell can know stays as it is written."""
        if written.startswith("$((") and written.endswith("))"):
            return self._arithmetic(written)
        if written.startswith("$("):
            return written
        if not written.startswith("${"):
            return (self._value(written[1:]) if len(written) > 1 else None) or self._empty_or(written)
        match = _BRACED.fullmatch(written[2:-1])
        if match is None:
            return written
        name, _, sign, default = match.groups()
        value = self._value(name)
        if sign is None:
            return value if value is not None else written
        if name in self._values and value is None:
            return written
        if sign[-1] == "+":
            is_set = value if sign[0] == ":" else value is not None
            return self._substituted(_strip_quotes(default)) if is_set else ""
        return self._substituted(_strip_quotes(default)) if value is None or (sign[0] == ":" and not value) else value

    def _empty_or(self, written: str) -> str:
        return "" if self._value(written[1:]) == "" else written

    def _arithmetic(self, written: str) -> str:
        expression = re.sub(r"\$?\{?([A-Za-z_]\w*)\}?", lambda match: self._value(match[1]) or "?", written[3:-2])
        try:
            return str(_number(ast.parse(expression.strip(), mode="eval").body))
        except (SyntaxError, ValueError, ZeroDivisionError, RecursionError):
            return written


def _number(node: ast.expr) -> int:
    """Whole-number arithmetic. Raises ValueError for anything else."""
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return node.value
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_number(node.left), _number(node.right))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_number(node.operand)
    raise ValueError("no whole-number arithmetic")


def _commands(text: str) -> Iterator[list[str]]:
    """The words of each command as written, quotes included; comments and redirections left out, `_PERHAPS` put in."""
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
            reference = _reference(text, at)
            word += reference
            at += len(reference)
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
            if words not in ([], [_PERHAPS]):
                yield words
            words = [_PERHAPS] if text[at : at + 2] in ("&&", "||") else []
            at += 2 if words else 1
        elif character.isspace():
            ended()
            at += 1
        else:
            word += character
            at += 1
    ended()
    if words not in ([], [_PERHAPS]):
        yield words


def _pieces(raw: str) -> Iterator[tuple[str, str]]:
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
            at += len(_reference(raw, at)) if raw[at] == "$" else 2 if raw[at] == "\\" else 1
        yield raw[start:at], ""


def _closing(text: str, at: int) -> int:
    """The place behind the quote that closes the one at `at`; the text's end for one that never closes."""
    quote, at = text[at], at + 1
    while at < len(text) and text[at] != quote:
        at += 2 if text[at] == "\\" and quote != "'" else 1
    return min(at + 1, len(text))


def _reference(text: str, at: int) -> str:
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


def _strip_quotes(text: str) -> str:
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text
