"""Sequence parallelism: the tokens are split wherever tensor parallelism splits nothing.

The all-reduce after a row-parallel product then becomes a reduce-scatter, and an all-gather stands before
the next column-parallel one (Korthikanti et al. 2022, arXiv 2205.05198, section 4.2.2). The tensor pass
asks this module which axes are tokens.
"""

from __future__ import annotations

from graph_ir.equation import Window
from graph_ir.graph import Graph
from graph_ir.logical_axes import Axis, LogicalAxes
from partitioner.strategies.data import batch_axes


def token_axes(graph: Graph, axes: LogicalAxes) -> frozenset[Axis]:
    """Axes that the importer calls the sequence, or else what repeated blocks hand on as their own.

    They belong to neither the batch nor a weight, and no window slides over them: rows of an image are no
    tokens.
    """
    # A weight that is only added (a position's embedding) may have a row for every token.
    weights = {
        a
        for node in graph.nodes
        if node.definition.kind in ("contraction", "normalization")
        for v in node.inputs
        if v.kind == "parameter"
        for a in axes.all_of(v)
    }
    batch = batch_axes(graph, axes)
    carried = {
        a
        for block in graph.blocks
        for carry in block.carries
        if carry.argument.type.dtype.is_float
        for a in axes.all_of(carry.argument)
    }
    named = {
        a
        for v in graph.inputs
        for name, dim in zip(v.dim_names, axes.of_value(v), strict=False)
        if name == "sequence"
        for a in dim
    }
    for node in graph.nodes:
        # What another mesh axis has split already: a part of the tokens is an axis of its own.
        if node.op == "shard" and "split" in node.attrs:
            place = node.attrs["split"][0]
            whole, part = (axes.of_value(v)[place] for v in (node.inputs[0], node.outputs[0]))
            if named.intersection(whole):
                named.update(a for a in part if a not in whole)
    image = {
        a
        for node in graph.nodes
        if node.definition.kind in ("contraction", "reduction")
        for dims in node.equation.inputs
        for dim in dims
        if isinstance(dim, Window)
        for a in axes.of_node(node)[dim.output]
    }
    return frozenset(a for a in (named or carried) if a not in batch | weights | image)
