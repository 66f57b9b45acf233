"""Choosing operators by an expression: `bound == memory and time > 1ms`.

    expression := term ("or" term)*
    term       := factor ("and" factor)*
    factor     := "not" factor | "(" expression ")" | KEY OPERATOR VALUE
    OPERATOR   := == != < <= > >= ~ !~

`~` finds a text anywhere, with `*` and `?` as in file names. `bound == memory` holds for every memory
level. A value with blanks stands in quotes; a number may have a unit: 1ms, 2GB, 3G, 5%.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase

from graph_ir.errors import OpboundError, did_you_mean
from reports.figures import OpRow

Test = Callable[[OpRow], bool]

TEXT_KEYS: dict[str, Callable[[OpRow], str]] = {
    "operator": lambda row: row.label,
    "name": lambda row: row.name,
    "module": lambda row: row.module,
    "op": lambda row: row.op,
    "phase": lambda row: row.phase,
    "bound": lambda row: row.bound,
    "engine": lambda row: row.engine,
    "dtype": lambda row: "/".join(dict.fromkeys(row.dtypes)),
    "axis": lambda row: row.axis or "",
}

NUMBER_KEYS: dict[str, tuple[str, Callable[[OpRow], float]]] = {
    "count": ("operators", lambda row: row.count),
    "flops": ("flops", lambda row: row.flops),
    "read": ("bytes_moved", lambda row: row.bytes_read),
    "written": ("bytes_moved", lambda row: row.bytes_written),
    "bytes": ("bytes_moved", lambda row: row.bytes_read + row.bytes_written),
    "sent": ("bytes_moved", lambda row: row.bytes_communicated),
    "intensity": ("operators", lambda row: row.arithmetic_intensity or 0.0),
    "time": ("step_time", lambda row: row.time_s),
    "share": ("memory_bound", lambda row: row.share),
    "use": ("memory_bound", lambda row: row.utilization),
}
"""Key -> (the metric whose units its values have, the value)."""

_COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_TOKENS = re.compile(r"""\s*(==|!=|<=|>=|!~|[<>~()]|"[^"]*"|'[^']*'|[^\s<>=!~()"']+)""")


def filter_rows(rows: Iterable[OpRow], expression: str) -> list[OpRow]:
    """The rows for which the expression holds.

    Raises:
        OpboundError: if the expression cannot be read; says where.
    """
    test = parse_filter(expression)
    return [row for row in rows if test(row)]


def parse_filter(expression: str) -> Test:
    """Reads an expression.

    Raises:
        OpboundError: if it cannot be read; says where.
    """
    reader = _Reader(expression)
    test = reader.expression()
    if reader.tokens:
        raise reader.wrong(f"{reader.tokens[0]!r} is too much")
    return test


class _Reader:
    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens: list[str] = []
        place = 0
        end = len(text.rstrip())
        while place < end:
            match = _TOKENS.match(text, place)
            if match is None:
                raise self.wrong(f"cannot read {text[place:].strip()!r}")
            self.tokens.append(match[1])
            place = match.end()

    def wrong(self, why: str) -> OpboundError:
        return OpboundError(
            f"--filter {self.text!r}: {why}; write it as 'bound == memory and time > 1ms'"
        )

    def take(self, what: str) -> str:
        if not self.tokens:
            raise self.wrong(f"{what} is missing at the end")
        return self.tokens.pop(0)

    def expression(self) -> Test:
        tests = [self.term()]
        while self.tokens and self.tokens[0] == "or":
            self.tokens.pop(0)
            tests.append(self.term())
        return tests[0] if len(tests) == 1 else lambda row: any(test(row) for test in tests)

    def term(self) -> Test:
        tests = [self.factor()]
        while self.tokens and self.tokens[0] == "and":
            self.tokens.pop(0)
            tests.append(self.factor())
        return tests[0] if len(tests) == 1 else lambda row: all(test(row) for test in tests)

    def factor(self) -> Test:
        word = self.take("a condition")
        if word == "not":
            test = self.factor()
            return lambda row: not test(row)
        if word == "(":
            test = self.expression()
            if self.take("a closing bracket") != ")":
                raise self.wrong("a closing bracket is missing")
            return test
        return self.condition(word)

    def condition(self, key: str) -> Test:
        if key not in TEXT_KEYS and key not in NUMBER_KEYS:
            raise self.wrong(
                f"there is no {key!r}; {did_you_mean(key, [*TEXT_KEYS, *NUMBER_KEYS])}"
            )
        sign = self.take("a comparison")
        value = self.take("a value").strip("\"'")
        if key in TEXT_KEYS:
            return self.text_test(key, sign, value)
        if sign not in _COMPARISONS:
            raise self.wrong(f"{key} is a number: compare it with ==, !=, <, <=, > or >=")
        metric, number_of = NUMBER_KEYS[key]
        from reports.gate.metrics import METRICS  # most reports filter by no number

        limit = METRICS[metric].parse(value, f"--filter {self.text!r}")
        compare = _COMPARISONS[sign]
        return lambda row: compare(number_of(row), limit)

    def text_test(self, key: str, sign: str, value: str) -> Test:
        text_of = TEXT_KEYS[key]
        if sign in ("~", "!~"):
            pattern = f"*{value}*"
            return lambda row: fnmatchcase(text_of(row), pattern) == (sign == "~")
        if sign not in ("==", "!="):
            raise self.wrong(f"{key} is a text: compare it with ==, !=, ~ or !~")
        # memory is every level of it: memory:dram, memory:l2.
        whole = key != "bound" or ":" in value
        return lambda row: (
            ((text_of(row) if whole else text_of(row).partition(":")[0]) == value) == (sign == "==")
        )
