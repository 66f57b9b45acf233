"""The budget file, opbound.toml: targets, each with an analysis and what it may cost."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graph_ir.errors import OpboundError, did_you_mean
from reports.gate.metrics import METRICS

_LISTS = ("forbid_operators", "forbid_dtypes")
_PART_KEYS = ("module", "operator", "limits", "growth")


@dataclass(frozen=True, slots=True)
class Part:
    """Limits on some operators: those of a module, of a kind, or both."""

    module: str | None
    """A path with `*` and `?`; a module stands for everything in it."""
    operator: str | None
    """A kind of operator: conv, transpose, ..."""
    limits: Mapping[str, float]
    growth: Mapping[str, float]

    def __str__(self) -> str:
        parts = [f"module {self.module}" if self.module else "", self.operator or ""]
        return " ".join(filter(None, parts))


@dataclass(frozen=True, slots=True)
class Target:
    """One analysis of the model, and what it may cost."""

    name: str
    options: Mapping[str, Any]
    """Options of the analysis, named as in `opbound.analyze`."""
    limits: Mapping[str, float]
    """Most that a metric may be, in base units."""
    growth: Mapping[str, float]
    """Most that a metric may grow over the baseline, as a fraction: 0.05 is 5 %."""
    forbid_operators: tuple[str, ...]
    forbid_dtypes: tuple[str, ...]
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Budget:
    """A budget file."""

    path: str
    targets: tuple[Target, ...]


def load_budget(path: str, known_options: frozenset[str]) -> Budget:
    """Reads a budget file.

    Args:
        path: a TOML file.
        known_options: the options that a target may have.

    Raises:
        OpboundError: if it cannot be read, or says what means nothing; names the place.
    """
    try:
        data = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise OpboundError(
            f"cannot read the budget {path}: {error.strerror}; `opbound init MODEL` writes one"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise OpboundError(f"{path} is no TOML: {error}") from None
    _known(data, ("target",), path)
    targets = data.get("target", [])
    if (
        not isinstance(targets, list)
        or not targets
        or not all(isinstance(t, dict) for t in targets)
    ):
        raise OpboundError(f"{path}: there is no [[target]]; `opbound init MODEL` writes one")
    read = tuple(
        _target(t, f"{path}: target {i + 1}", known_options) for i, t in enumerate(targets)
    )
    names = [target.name for target in read]
    for name in names:
        if names.count(name) > 1:
            raise OpboundError(f"{path}: two targets are called {name!r}; give each its own name")
    return Budget(path, read)


def _target(data: Mapping[str, Any], where: str, known_options: frozenset[str]) -> Target:
    name = data.get("name", "default")
    if not isinstance(name, str) or not name:
        raise OpboundError(f"{where}: name should be a text")
    where = f"{where} ({name})"
    own = ("name", "limits", "growth", "part", *_LISTS)
    _known(data, (*own, *known_options), where)
    return Target(
        name=name,
        options={key: value for key, value in data.items() if key not in own},
        limits=_limits(data.get("limits", {}), f"{where}: limits", whole=True),
        growth=_growth(data.get("growth", {}), f"{where}: growth", whole=True),
        forbid_operators=_texts(data, "forbid_operators", where),
        forbid_dtypes=_texts(data, "forbid_dtypes", where),
        parts=tuple(_part(p, f"{where}: part {i + 1}") for i, p in enumerate(data.get("part", []))),
    )


def _part(data: Mapping[str, Any], where: str) -> Part:
    _known(data, _PART_KEYS, where)
    module, operator = data.get("module"), data.get("operator")
    if module is None and operator is None:
        raise OpboundError(f"{where}: say which operators it limits, with module or operator")
    return Part(
        module=module,
        operator=operator,
        limits=_limits(data.get("limits", {}), f"{where}: limits", whole=False),
        growth=_growth(data.get("growth", {}), f"{where}: growth", whole=False),
    )


def _limits(data: Mapping[str, Any], where: str, *, whole: bool) -> dict[str, float]:
    _known(data, _metrics(whole=whole), where)
    return {name: METRICS[name].parse(value, where) for name, value in data.items()}


def _growth(data: Mapping[str, Any], where: str, *, whole: bool) -> dict[str, float]:
    _known(data, _metrics(whole=whole), where)
    return {name: METRICS["memory_bound"].parse(value, where) for name, value in data.items()}


def _metrics(*, whole: bool) -> tuple[str, ...]:
    return tuple(n for n, metric in METRICS.items() if whole or metric.of_rows is not None)


def _texts(data: Mapping[str, Any], key: str, where: str) -> tuple[str, ...]:
    value = data.get(key, [])
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise OpboundError(f"{where}: {key} should be a list of texts")
    return tuple(value)


def _known(data: object, known: tuple[str, ...], where: str) -> None:
    if not isinstance(data, Mapping):
        raise OpboundError(f"{where}: should be a table")
    for key in data:
        if key not in known:
            raise OpboundError(f"{where}: {key!r} means nothing here; {did_you_mean(key, known)}")
