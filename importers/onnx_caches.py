"""Finds the KV cache among a model's inputs and results, so that memory can count it as such.

ONNX has no mark for it. Exporters call the tensors `past_key_values.0.key` and `present.0.key`, `k_cache`
and the like; a result that joins a past input with something new is a cache whatever its name.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from graph_ir.graph import GraphBuilder, Value

_PAST = re.compile(r"past|(?<![a-z])(kv|k|v|key|value|self|cross)_?cache|cache_?(kv|k|v|key)", re.I)
_PRESENT = re.compile(r"present|updated_(key|value)", re.I)
_MIN_RANK = 3  # lengths and masks of the past are vectors and matrices
_JOINS = frozenset({"concat", "scatter_nd", "scatter_elements", "slice_update"})


def mark_caches(
    builder: GraphBuilder, results: Sequence[Value], names: Sequence[str]
) -> list[Value]:
    """Gives caches their role.

    Where a step makes a new cache from the old one, the new one carries the role: it holds one token
    more, and a runtime keeps only that from step to step. Counting both would count each token twice.

    Args:
        builder: the finished nodes and inputs; changed in place.
        results: the model's results.
        names: the results' names in the file.

    Returns:
        The results, caches among them with their role.
    """
    pasts = {v for v in builder.inputs if v.kind == "input" and _is_cache(v, v.name, _PAST)}
    producers = {v: node for node in builder.nodes for v in node.outputs} if results else {}
    marked: dict[Value, Value] = {}
    grown: set[Value] = set()
    for value, name in zip(results, names, strict=True):
        node = producers.get(value)
        if node is None or len(value.type.shape) < _MIN_RANK:
            continue
        sources = (
            pasts.intersection(node.inputs) if node.op in _JOINS or node.op == "copy" else set()
        )
        if sources or _is_cache(value, name, _PRESENT):
            marked[value] = replace(value, role="kv_cache")
            grown |= sources
    marked |= {v: replace(v, role="kv_cache") for v in pasts - grown}
    if marked:
        _replace(builder, marked)
    return [marked.get(v, v) for v in results]


def _is_cache(value: Value, name: str, pattern: re.Pattern[str]) -> bool:
    holds_numbers = value.type.dtype.is_float or value.type.dtype.bits <= 8
    return (
        len(value.type.shape) >= _MIN_RANK
        and value.type.elements > 0
        and holds_numbers
        and bool(pattern.search(name))
    )


def _replace(builder: GraphBuilder, marked: dict[Value, Value]) -> None:
    builder.inputs[:] = [marked.get(v, v) for v in builder.inputs]
    for i, node in enumerate(builder.nodes):
        if not marked.keys().isdisjoint((*node.inputs, *node.outputs)):
            builder.nodes[i] = replace(
                node,
                inputs=tuple(marked.get(v, v) for v in node.inputs),
                outputs=tuple(marked.get(v, v) for v in node.outputs),
            )
