"""Figures as short text for people; '–' stands for a missing figure."""

import math

ABSENT = "–"

_VISIBLE = {code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\n\t"}
_VISIBLE |= {0x7F: "\u2421", **dict.fromkeys(range(0x80, 0xA0), "\ufffd")}


def fraction(value: float) -> str:
    """A share in [0, 1] with two digits: .07, .5 as .50, 1.0."""
    if not math.isfinite(value):
        return ABSENT
    text = f"{value:.2f}"
    return "1.0" if text == "1.00" else text.removeprefix("0")


def number(value: float, digits: int = 1) -> str:
    """A small number with at most `digits` decimals: 0.9, 1, 3."""
    if not math.isfinite(value):
        return ABSENT
    text = f"{value:.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def quantity(value: float) -> str:
    """A count or rate with a suffix: 940, 9.8k, 1.2M."""
    if not math.isfinite(value):
        return ABSENT
    for limit, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 0.9995 * limit:
            scaled = value / limit
            return f"{scaled:.0f}{suffix}" if abs(scaled) >= 99.95 else f"{scaled:.1f}{suffix}"
    return f"{value:.0f}"


def duration(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss, rounded to the nearest second."""
    if not math.isfinite(seconds) or seconds < 0:
        return ABSENT
    minutes, rest_s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest_s:02}" if hours else f"{minutes}:{rest_s:02}"


def printable(text: str) -> str:
    """`text` with control characters made visible, but for newline and tab: no text may drive the reader's terminal."""
    return text.translate(_VISIBLE)
