r"""Finds the letter that a text asserts as its choice. Text in, letter out; verifiers/multiple_choice.py compares.

A letter that merely occurs is no choice: `The answer is B, since option A ignores friction` asserts B. So sentences are
searched for assertions (`the answer is B`, `it must be B`, `B is correct`, `so B`), after questions, reasons (`since ...`)
and conditions have been taken out; a letter that is denied (`not A`, `A is wrong`) never counts. `A` and `I` are words too,
and so are small letters: these need an end of the clause behind them, or a word such as `because`. Two letters at once
(`A or B`) are no choice.
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Final

from services.reward.final_answers import UNSEEN

_NOUN = r"(?:(?:option|choice|answer|letter|alternative|statement)s?\s+)?"
_END = (
    r"(?=\s*(?:$|[.,;:!?)\n/&]|-\s|\s(?:because|since|as|and|or|but|not|rather|by|for|due|over|instead|which|while)\b))"
)
"""Where a letter ends its clause."""
_END_OR_VERB = (
    rf"(?:{_END}|(?=\s+(?:is|isn't|was|must|would|should|seems|looks|works|fits|holds|matches|wins|follows)\b))"
)
_NO_WORD = r"(?![A-Za-z0-9'+#%]|-[A-Za-z])"
_LETTER = (
    rf"(?<![A-Za-z0-9'-])(?:\(\s*(?P<wrapped>[A-Za-z])\s*\)|(?P<plain>[B-HJ-Z]){_NO_WORD}"
    rf"|(?P<word>[A-Za-z]){_NO_WORD}{_END_OR_VERB})"
)
_ADVERBS = (
    r"(?:(?:therefore|thus|then|clearly|definitely|likely|probably|indeed|really|actually|simply|just|the|only|most|also|"
    r"obviously|certainly|surely|in fact|still|now)\s+)*"
)
_VERB = r"(?:is|was|(?:would|must|should|has to|will|ought to)(?: therefore| thus| then| clearly)? be|remains|becomes)"
_PATTERNS: Final = (
    # the answer is B; answer: B; the correct option would be (B)
    rf"(?i:\b(?:answer|choice|option|response|solution|selection|pick|possibility)\b[^:\n]{{0,60}}?(?:\b{_VERB}\b|'s\b|[:=])\s*:?\s*"
    rf"{_ADVERBS}{_NOUN}){_LETTER}",
    # ans. B
    rf"(?i:\bans\b\s*[.:]?\s*{_NOUN}){_LETTER}{_END}",
    # answer - B
    rf"(?i:\b(?:answer|choice|option)\s*[-,]\s*{_NOUN}){_LETTER}{_END}",
    # the correct statement is B
    rf"(?i:\b(?:correct|right|true|best)\s+\w+\s+{_VERB}\s+{_ADVERBS}{_NOUN}){_LETTER}{_END}",
    # it must be B
    rf"(?i:\b(?:its|(?:it|this|that)(?:\s+{_VERB}|'s))\s+{_ADVERBS}{_NOUN}){_LETTER}{_END}",
    # I choose B
    r"(?i:\b(?:choos(?:e|ing)|chose|(?:pick|select)(?:ed|ing)?|go(?:ing)? (?:with|for)|opt for|settle on|vote for|conclude|say|"
    rf"take|prefer|answer|believe|think|guess)\s+(?:on\s+|with\s+|that\s+|it's\s+|it is\s+)?{_ADVERBS}{_NOUN}){_LETTER}{_END}",
    # so B; wait, B; which leaves B
    r"(?i:\b(?:so|therefore|thus|hence|consequently|then|leav(?:es?|ing)|left|conclusion|overall|finally|final|but|instead|ultimately|wait|"
    r"no[,:]|actually|correction|sorry|i mean|make that|elimination|chang(?:e|ed|ing) (?:it|(?:my|the) answer)(?: from \w)? to)"
    rf"[\s,:-]+(?:rather\s+|it's\s+|it is\s+|(?:us\s+)?with\s+)*{_ADVERBS}{_NOUN})"
    rf"{_LETTER}{_END}",
    # definitely B; must be B
    r"^\W*(?i:(?:must be|definitely|clearly|probably|likely|most likely|certainly|obviously|surely)[\s,:]+"
    rf"{_NOUN}){_LETTER}{_END}",
    # which corresponds to option B; this matches (B)
    r"(?i:\b(?:correspond(?:s|ing)?|match(?:es|ing)?|agrees?|closest|equivalent|equal)\s+(?:to\s+|with\s+)?"
    rf"(?=\(|option|choice|answer|letter)(?:answer\s+)?{_NOUN}){_LETTER}{_END}",
    # Chinese: choose B
    rf"(?<!\u4e0d)[\u9009\u9078][\u62e9\u64c7]?[\u9879\u9805]?[\u662f\u4e3a\u70ba]?\s*:?\s*{_LETTER}",
    # Chinese: B is right
    rf"{_LETTER}\s*(?:\u9009\u9879|\u9078\u9805)?\s*\u662f?\s*(?:\u6b63\u786e|\u6b63\u78ba|\u5bf9\u7684)",
    # which makes B the answer
    rf"(?i:\bmak(?:es|ing)\s+{_NOUN}){_LETTER}(?i:\s+(?:the|correct|right)\b)",
    # which leaves one: B
    rf":\s+(?i:{_NOUN}){_LETTER}\)?\s*[.!]?$",
    # B is correct; B works
    rf"(?i:{_NOUN}){_LETTER}\s*(?i:(?:{_VERB}|seems|looks|'s)\s+{_ADVERBS}"
    r"(?:correct|right|true|best|better|answer|valid|solution|choice|option|winner|one)\b"
    r"|(?:works|fits|holds|matches|wins|remains|is left|it is|(?:should|must) be (?:selected|chosen))\b)",
)
_ASSERTIONS: Final = tuple(re.compile(pattern) for pattern in _PATTERNS)
_CORRECTION: Final = re.compile(
    r"(?i:\b(?:wait|sorry|correction|scratch that|make that|i mean|actually|on second thought|no(?=\s*[,:]))\b"
    r"(?:[\s,:.;-]|\bno\b)*"
    rf"(?:(?:it's|it is|it must be|it should be|(?:the|my) (?:correct |right |final )?"
    rf"answer (?:is|must be|should be))\s+)?{_NOUN})"
    rf"{_LETTER}{_END}"
)
_MENTION = re.compile(rf"(?i:\b(?:answer|option|choice)\s*:?\s*){_LETTER}")

_OTHERS = (
    r"\b(?:many|some|most|people|students?|others?|they|someone|everybody|everyone|one)\s+(?:(?!not)\w+\s+){0,4}?"
    r"(?:say|choose|chose|pick|picked|select|answer|think|guess|believe|take|go (?:with|for))"
    r"(?:\s+(?:that\s+)?(?:it|the answer)(?:\s+(?:is|must be)|'s))?"
)
"""Words that say what others assert."""
_DENIED = re.compile(
    r"(?:\bnot|n't|\bnor|\bneither|\bnever|\bthan|\binstead of|\bunlike|\bexcept|\brul(?:e|ed|es|ing) out|\beliminat\w+|"
    rf"\breject\w*|\bexclud\w+|\bwithout|{_OTHERS})\s+(?:both\s+)?{_NOUN}\(?\s*$",
    re.IGNORECASE,
)
_FALSE = re.compile(
    r"\s*\)?\s*(?:(?:is|was|does|do|can|could|would|has)(?:n't|\s+not)\b|cannot\b|can't\b|fails\b|ignores\b|violates\b|contradicts\b"
    r"|(?:is|was|seems|looks|must be)?\s*(?:clearly\s+|also\s+|just\s+)*(?:wrong|incorrect|false|invalid|impossible|out)\b)",
    re.IGNORECASE,
)
_ANOTHER = re.compile(
    rf"\s*\)?\s*(?:,\s*(?:or\b|and\b)?|[/&+;]|or\b|and\b|\)\s*(?=\())\s*(?i:{_NOUN})"
    rf"\(?(?:[A-Za-z]|[IVX]{{1,4}}){_NO_WORD}\)?(?:{_END}|\s+(?:are|were|only)\b)|\s+[A-Z]\s*$",
    re.IGNORECASE,
)
_REASON = re.compile(
    r"\b(?:since|because|whereas|while|although|though|unlike|given that|if|suppose|assuming)\b|,\s+as\b(?!\s+well\b)",
    re.IGNORECASE,
)
_SENTENCE = re.compile(r"(?<=[.!?;])(?<![Aa]ns\.)\s+|\n+")
_CONJUNCTION = re.compile(r"\W*(?:(?:but|and|so)\W*)?", re.IGNORECASE)

_LEADING = re.compile(rf"(?i:{_NOUN}:?\s*)\(?\s*(?P<letter>[A-Za-z]){_NO_WORD}(?:\s*(?P<bracket>\)))?(?P<after>[^\n]*)")
_ALONE = re.compile(r"(?:[-+\u2022]\s+|\d+[.)]\s+)?[^\w?+=%/-]*(?P<letter>[A-Za-z])[^\w?+=%/-]*")
"""A letter and nothing else but brackets, the mark of a list, ticks and the like."""
_LISTED = re.compile(r"(?:^\s*|[.;]\s+)\(?[A-Za-z][).:]\s+\S", re.MULTILINE)
_BEGINS = re.compile(r"\s*\(?[A-Za-z]\s*(?:[).:,]|-\s|$|(?<=\s)(?:because|since|as)\b)")

_COMMAND = re.compile(r"\\(?:text|math|mbox|emph|underline|bold|boxed|bf|rm)[a-z]*\s*(?=\{)")
_MATHS = re.compile(r"\\[()\[\],;! ]")
_ARROW = re.compile(r"[-=]+>")
_QUOTED = re.compile(r"(?<!\w)'([A-Za-z])'(?!\w)")
_UNSEEN = str.maketrans("", "", '*`$_{}"“”„«»')
_SAME = str.maketrans({"’": "'", "‘": "'", "[": "(", "]": ")", "【": "(", "】": ")", "<": "(", ">": ")", "。": ". ", "、": ", ",
                       "→": " so ", "⇒": " so ", "∴": " so ", "—": ", ", "–": ", "})  # fmt: skip


def leading(text: str, letters: str) -> str:
    """The letter that a short answer begins with, as in `B) Paris` or `(b), because ...`; else empty."""
    text = _plain(text)
    match = _LEADING.match(text)
    if match is None or match["letter"].upper() not in letters:
        return ""
    end = match.end("letter")
    if _ANOTHER.match(text, end) or _FALSE.match(text, end):
        return ""
    letter = match["letter"]
    if re.match(r"\s*\?\s*\S", match["after"]):  # a question, which the text behind it answers
        return ""
    if match["bracket"] or re.match(_END_OR_VERB, match["after"]) or (letter.isupper() and letter not in "AI"):
        return letter.upper()
    # `A Paris` names a choice, `A tricky one` does not.
    named = letter == "A" and re.match(r"\s+[A-Z0-9]", match["after"]) and not asserted(text, letters)
    return letter if named else ""


def alone(text: str, letters: str) -> str:
    """The letter of a text that is nothing else; else empty."""
    match = _ALONE.fullmatch(_plain(text))
    return match["letter"].upper() if match and match["letter"].upper() in letters else ""


def asserted(text: str, letters: str) -> str:
    """The letter of the last assertion, else of a line that begins with a letter, else of the last mention; else empty."""
    text = _plain(text)
    sentences = [*_sentences(text)]
    found = (
        _said_by(_ASSERTIONS, sentences, letters)
        or _line_begins(text, letters)
        or [letter for letter in [alone(sentences[-1] if sentences else "", letters)] if letter]
        or _said_by((_MENTION,), sentences, letters)
    )
    return found[-1] if found else ""


def corrected(text: str, letters: str) -> str:
    """The letter that a text takes instead of the one that it began with, as in `A. No wait, B.`; else empty."""
    *_, last = (
        None,
        *_CORRECTION.finditer(" ".join(_sentences(_plain(text)))),
    )  # `Wait, no. The answer is B.` is two of them
    return (_said(last, letters) or "") if last is not None else ""


def said_to_be_the_answer(text: str, letters: str) -> str:
    """The letter of the last `the answer is B`; else empty."""
    said = _said_by(_ASSERTIONS[:1], [*_sentences(_plain(text))], letters)
    return said[-1] if said else ""


def _said_by(patterns: Sequence[re.Pattern[str]], sentences: Sequence[str], letters: str) -> list[str]:
    """The letters of all matches, in their order; empty for a match of two letters."""
    said: list[str] = []
    for sentence in sentences:
        matches = sorted((match for pattern in patterns for match in pattern.finditer(sentence)), key=_position)
        said += [letter for match in matches if (letter := _said(match, letters)) is not None]
    return said


def _said(match: re.Match[str], letters: str) -> str | None:
    """The letter of a match; None for a denied one and for no choice, empty for one of two letters."""
    begin = _position(match)
    letter = match.string[begin].upper()
    if letter not in letters or _DENIED.search(match.string[:begin]) or _FALSE.match(match.string, begin + 1):
        return None
    return "" if _ANOTHER.match(match.string, begin + 1) else letter


def _position(match: re.Match[str]) -> int:
    return max(match.start(name) for name in ("wrapped", "plain", "word"))


def _line_begins(text: str, letters: str) -> list[str]:
    """The letter that the first or, which counts more, the last line begins with, unless the lines list the choices.

    Behind a list of the choices a letter on a line of its own still counts."""
    lines = [line for line in text.split("\n") if line.strip()]
    if not lines or len(_LISTED.findall(text)) > 1:
        return [letter for line in lines[-1:] if (letter := alone(line, letters))]
    return [letter for line in (lines[0], lines[-1]) if _BEGINS.match(line) and (letter := leading(line, letters))]


def _sentences(text: str) -> Iterator[str]:
    """The sentences that state something, without the reasons and conditions in them."""
    for sentence in _SENTENCE.split(text):
        if sentence.rstrip().endswith("?"):
            continue
        while reason := _REASON.search(sentence):
            before = sentence[: reason.start()]
            end = len(sentence)
            if _CONJUNCTION.fullmatch(before):  # the reason comes first, and ends at its comma
                comma = sentence.find(",", reason.end())
                end = comma if comma >= 0 else reason.end()
            sentence = before + sentence[end:]
        yield sentence.rstrip()


def _plain(text: str) -> str:
    """The text without bold, TeX wrappers and quotes, with one form of each bracket."""
    text = _MATHS.sub(" ", _COMMAND.sub("", UNSEEN.sub("", unicodedata.normalize("NFKC", text))))
    text = _ARROW.sub(" so ", text.translate(_UNSEEN)).translate(_SAME)
    return _QUOTED.sub(r"\1", text).strip()
