"""Reads the settings out of a shell script that launches verl, as the script stands. Nothing of the script is run.

Understood: comments, continued lines, quotes, variables and arrays that the script assigns (`${X:-default}` too), whole-number
arithmetic, redirections and pipes behind the command, commands within `bash -c "..."`, `ssh` and `eval`. A variable that the
script does not assign is taken from the environment. What only a shell can know - commands in `$(...)`, arguments of the
script, assignments under a condition - stays in the value as it is written, so that from_verl refuses the value by name, unless
it makes no difference. A configuration file that the command names for hydra is not read, which is said.
"""

import ast
import logging
import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

from sluice.config.shell_words import PERHAPS, commands_in, pieces, reference_at, without_quotes
from sluice.errors import ConfigError

# Not structlog: as in load.py, because somebody may pipe what the command prints.
log = logging.getLogger(__name__)

_SETTING = re.compile(r"(?:\+{0,2}[A-Za-z_][\w.@/-]*\.[\w.@/-]+=|~[A-Za-z_]\w*\.[\w.@/-]+(?:=|$))", re.ASCII)
_TRAINS = re.compile(r"\+{0,2}(?:data|actor_rollout_ref)\.")
_PLAIN_SETTING = re.compile(r"[+~]{0,2}[A-Za-z_]\w*=")
_SPEAKERS = frozenset({"echo", "printf", "log"})
_ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)(\+?)=(.*)", re.DOTALL)
_BRACED = re.compile(r"([A-Za-z_]\w*|[@*#?$!0-9-])(\[[^\]]*\])?(?:(:?[-=+?])(.*))?", re.DOTALL)
_LENGTH = re.compile(r"#([A-Za-z_]\w*)(?:\[[@*]\])?")
_LET = re.compile(r"\s*([A-Za-z_]\w*)\s*([-+*/%]?)=(?!=)(.*)", re.DOTALL)
_COMMAND_OF_A_SHELL = re.compile(r"-[a-z]*c")
_OPTION = re.compile(r"[-+][A-Za-z]+|--")
_CONFIG_FILE = re.compile(r"(?:--config-(?:name|path|dir)|-c[npd])(?:=.*)?", re.DOTALL)
_LARGEST_EXPONENT = 64
_OPENING = frozenset({"if", "for", "while", "until", "case", "{"})
_CLOSING = frozenset({"fi", "done", "esac", "}"})
_WORDS_BEFORE = frozenset(
    {
        "function",
        "then",
        "do",
        "else",
        "elif",
        "exec",
        "nohup",
        "time",
        *("export", "declare", "typeset", "local", "readonly"),
    }
)
_SETS_VARIABLES = frozenset({"read", "mapfile", "readarray", "printf", "getopts", "unset"})
"""Commands whose arguments may be variables that they change."""
_HERE_DOCUMENT = re.compile(r"<<-?[ \t]*(['\"]?)(\w+)\1[^\n]*\n(?:.*?\n)?[ \t]*\2[ \t]*(?=\n|\Z)", re.DOTALL)
_YAML = re.compile(r"(?:[ \t]*(?:#[^\n]*)?\n)*(?:- |['\"+\w.-]+[ \t]*:(?:\s|\Z))")
_WHOLE_VARIABLE = re.compile(r"\$\{?([A-Za-z_]\w*)(?:\[[@*]\])?\}?")
_OPERATORS: Final[Mapping[type[ast.operator], Callable[[int, int], int]]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.floordiv,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod, ast.LShift: operator.lshift, ast.RShift: operator.rshift,
    ast.Pow: operator.pow,
}  # fmt: skip
_LOOKS = re.compile(
    r"^#!|^[ \t]*(?:set +[-+]|export +\w+=|(?:nohup +|exec +|\w+=\S* +)*(?:python3?|torchrun|ray|bash)\b)"
    r"|^[ \t]*[A-Za-z_]\w*=(?:\S*[ \t]*$|[\"'(])|\bverl\.trainer\.main_\w+|\bmain_dapo\b",
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
    # Another program's settings, such as those of a step that prepares data, are no training.
    training = [words for words in commands if any(_TRAINS.match(word) for word in words)]
    if len(training) == 1:
        commands = training
    if len(commands) > 1:
        raise ConfigError(
            f"{where}: has {len(commands)} commands with settings of verl; leave one in a copy of the script"
        )
    for flag in reader.config_files:
        log.warning(
            "%s: %s: that file is not read; add to the recipe what it sets apart from verl's defaults", where, flag
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
    config_files: list[str] = field(default_factory=list)
    """Flags that name a configuration file of hydra."""

    def commands(self, text: str) -> Iterator[tuple[bool, list[str]]]:
        """The settings of every command, and whether it begins with one: then a comment tore it from the command before.

        With settings stand the variables that may hold more settings and that only a shell can know.
        """
        for raw in commands_in(_HERE_DOCUMENT.sub("", text.replace("\r\n", "\n"))):
            perhaps = raw[0] == PERHAPS
            words = raw[1:] if perhaps else raw
            while words and words[0] in _WORDS_BEFORE | _OPENING | _CLOSING:
                self._depth += (words[0] in _OPENING) - (words[0] in _CLOSING and self._depth > 0)
                if words[0] in ("for", "case", "function"):
                    self._forget(words[1:2])
                    words = []
                words = words[1:]
                while words and _OPTION.fullmatch(words[0]):
                    words = words[1:]
            if words and words[0] == "let":
                self._let([self._unquoted(word) for word in words[1:]], perhaps=perhaps or self._depth > 0)
                continue
            while words and (match := _ASSIGNMENT.fullmatch(words[0])) and not _SETTING.match(words[0]):
                self._assign(match[1], match[3], more=bool(match[2]), perhaps=perhaps or self._depth > 0)
                words = words[1:]
            if words and words[0] in _SETS_VARIABLES:
                last = 3 if words[0] == "printf" else len(words)  # printf -v NAME
                self._forget([word for word in words[1:last] if word.isidentifier()])
            if words:
                expanded = [one for word in words for one in self._words(word)]
                if script := self._script_within(expanded):
                    yield from self.commands(script)
                    continue
                settings = self._settings_among(expanded)
                if settings and words[0] not in _SPEAKERS:
                    self._note_config_files(expanded)
                    yield bool(_SETTING.match(expanded[0])), settings

    def _script_within(self, words: Sequence[str]) -> str | None:
        """The script that a command gives to another shell: `bash -c "..."`, `ssh HOST "..."` or `eval "..."`."""
        if words[0] == "ssh" and len(words[-1].split()) > 1:
            return words[-1]
        for before, word in pairwise(words):
            if (before == "eval" or _COMMAND_OF_A_SHELL.fullmatch(before)) and len(word.split()) > 1:
                return word
        return None

    def _note_config_files(self, words: Sequence[str]) -> None:
        for place, word in enumerate(words):
            if _CONFIG_FILE.fullmatch(word):
                after = words[place + 1 : place + 2] if "=" not in word else []
                self.config_files.append(" ".join([word, *after]))

    def _let(self, written: Sequence[str], *, perhaps: bool) -> None:
        """Takes the assignments of `let X=...` and `((X = ...))`; what else changes a variable leaves it unknown."""
        for one in written:
            match = _LET.fullmatch(one)
            if match is None:
                self._forget(re.findall(r"([A-Za-z_]\w*)\s*(?:\+\+|--|<<=|>>=)", one))
                continue
            name, sign, expression = match.groups()
            value = self._arithmetic(f"$(({name} {sign} ({expression})))" if sign else f"$(({expression}))")
            known = not value.startswith("$") and (not perhaps or self._value(name) == value)
            self._values[name] = value if known else None

    def _forget(self, names: Sequence[str]) -> None:
        for name in names:
            self._values[name] = None
            self._arrays.pop(name, None)

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
            items = [one for words in commands_in(raw[1:-1]) for word in words for one in self._words(word)]
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
            return list(self._arrays.get(array[1], [bare]))
        value = self._expanded(raw)
        if re.fullmatch(r"\$\{?\w+\}?", raw) and self._is_known(
            raw.strip("${}")
        ):  # unquoted: the shell splits its words
            return [one for words in commands_in(value) for word in words for one in [self._unquoted(word)]]
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
        return "".join(text for text, _ in pieces(word))

    def _expanded(self, raw: str) -> str:
        """The word without quotes, with every variable that is known."""
        parts = [text if quote == "'" else self._substituted(text, quote) for text, quote in pieces(raw)]
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
                written = reference_at(text, at)
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
        if length := _LENGTH.fullmatch(written[2:-1]):
            measured = self._arrays.get(length[1], self._value(length[1]))
            return written if measured is None else str(len(measured))
        match = _BRACED.fullmatch(written[2:-1])
        if match is None:
            return written
        name, place, sign, default = match.groups()
        value = self._value(name)
        if place not in (None, "[@]", "[*]"):
            number = self._arithmetic(f"$(({place[1:-1]}))")
            if not number.isdecimal():
                return written
            value = self._item(name, int(number))
        if sign is None:
            return value if value is not None else written
        if name in self._values and value is None:
            return written
        if sign[-1] == "+":
            is_set = value if sign[0] == ":" else value is not None
            return self._substituted(without_quotes(default)) if is_set else ""
        if value is not None and (value or sign[0] != ":"):
            return value
        if sign[-1] == "?":
            return written
        value = self._substituted(without_quotes(default))
        if sign[-1] == "=":
            self._values[name] = None if self._depth else value
        return value

    def _item(self, name: str, place: int) -> str | None:
        """An item of an array, empty behind its end; None where the array is not known. A variable is its own first item."""
        items = self._arrays.get(name)
        if items is None:
            return self._value(name) if place == 0 else None
        return items[place] if place < len(items) else ""

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
        left, right = _number(node.left), _number(node.right)
        if isinstance(node.op, ast.Pow | ast.LShift | ast.RShift) and not 0 <= right <= _LARGEST_EXPONENT:
            raise ValueError("no exponent of a shell")
        return _OPERATORS[type(node.op)](left, right)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_number(node.operand)
    raise ValueError("no whole-number arithmetic")
