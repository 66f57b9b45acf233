"""Numbers and names as text that is safe to print: short, with units, no control characters."""

from __future__ import annotations

import unicodedata

_SCALES = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))

# Cc control, Cf format (right-to-left marks, zero width), Cs surrogates, Co private use, Cn
# unassigned, Zl and Zp line and paragraph separators: none may reach a terminal from a model file.
_UNSAFE_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


def ratio(part: float, whole: float) -> float:
    """`part / whole`, and 0 where there is no whole: a model of views takes no time."""
    return part / whole if whole else 0.0


def plain_text(text: str, limit: int = 200) -> str:
    r"""Makes an untrusted name printable on one line.

    Control and formatting characters (ANSI escapes, newlines, right-to-left marks) become visible
    escapes such as \x1b, and what goes beyond `limit` characters becomes an ellipsis.
    """
    # A name of megabytes is cut before each character is looked at.
    head = text[: limit + 1]
    if not (head.isascii() and head.isprintable()):
        head = "".join(
            char
            if unicodedata.category(char) not in _UNSAFE_CATEGORIES
            else char.encode("unicode_escape", "surrogatepass").decode("ascii")
            for char in head
        )
    return head if len(head) <= limit else head[: limit - 1] + "…"


def shorten(text: str, limit: int) -> str:
    """Cuts the middle out of a text longer than `limit`: a path's two ends say the most."""
    if len(text) <= limit:
        return text
    tail = (limit - 1) * 2 // 3
    return f"{text[: limit - 1 - tail]}…{text[len(text) - tail :]}"


def scaled_text(value: float, unit: str = "") -> str:
    """A count with three significant digits and a decimal prefix: 1.23 G."""
    for factor, prefix in _SCALES:
        if abs(value) >= factor * 0.9995:
            return f"{_three_digits(value / factor)} {prefix}{unit}"
    number = f"{value:.0f}" if float(value).is_integer() else _three_digits(value)
    return f"{number} {unit}".rstrip()


def bytes_text(value: float) -> str:
    """Bytes with a decimal prefix: 1 GB is 10^9 bytes."""
    return scaled_text(value, "B")


def time_text(seconds: float) -> str:
    """A time in the unit that leaves three digits before or after the point."""
    for factor, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if seconds >= factor * 0.9995:
            return f"{_three_digits(seconds / factor)} {unit}"
    return f"{_three_digits(seconds / 1e-9)} ns" if seconds else "0 s"


def percent_text(part: float) -> str:
    """A fraction as per cent, with a digit after the point below ten."""
    percent = part * 100
    if percent == 0:
        return "0 %"
    if percent < 0.1:
        return "<0.1 %"
    return f"{percent:.0f} %" if percent >= 9.95 else f"{percent:.1f} %"


def shape_text(shape: tuple[int, ...]) -> str:
    """A shape as 1x3x224x224; `scalar` without dims."""
    return "x".join(map(str, shape)) if shape else "scalar"


def _three_digits(value: float) -> str:
    if abs(value) >= 99.95:
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 9.995 else f"{value:.2f}"
