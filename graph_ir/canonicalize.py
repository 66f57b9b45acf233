"""One canonical operator for one meaning, whichever frontend wrote the graph.

A layer norm that an exporter wrote out in nine operators, or an attention made of two matrix products and a
softmax, becomes the one operator that a fusing compiler runs as one kernel. What nothing reads, and what is
the same at every step, goes.
"""

from __future__ import annotations

from graph_ir.backward import required_gradients
from graph_ir.graph import Graph
from graph_ir.patterns import (
    activation,
    attention,
    attention_fused,
    group_norm,
    norm,
    quantized,
    rotary,
    softmax,
)
from graph_ir.patterns.in_place import read_in_place
from graph_ir.patterns.rewrite import Pattern, Rewriter
from graph_ir.prepared import prepared_once
from graph_ir.unread import without_unread

PATTERNS: tuple[Pattern, ...] = (
    *norm.PATTERNS,
    *group_norm.PATTERNS,
    *activation.PATTERNS,
    *softmax.PATTERNS,
    *rotary.PATTERNS,
    *attention.PATTERNS,
    *attention_fused.PATTERNS,
    *quantized.PATTERNS,
)


def canonicalize(graph: Graph, *, training: bool = False) -> Graph:
    """Replaces what patterns recognise by canonical operators.

    Args:
        graph: a forward graph, folded or not. Folding cuts a model where it likes, so a pattern across two
            layers is only seen in an unfolded one.
        training: whether a backward pass will be derived: canonical operators then also make what it
            reads, and what would lose a gradient stays as it is.
    """
    return prepared_once(recognised(graph, training=training), training=training)


def recognised(graph: Graph, *, training: bool = False) -> Graph:
    """As `canonicalize`, but with what could be prepared once left in the step."""
    graph = read_in_place(without_unread(graph))
    required = required_gradients(graph) if training else None
    return Rewriter(graph, PATTERNS, required).run()
