"""How many parameters of a mixture of experts one token meets."""

from __future__ import annotations

from graph_ir.graph import Graph, Node, Value


def activated_parameters(graph: Graph, tokens: int) -> int | None:
    """Parameters that take part in the work on one token, None if no expert is skipped.

    An expert's weights count by the share of experts that a token is sent to: rows of the grouped product
    over tokens and experts. Everything else counts whole, the table of embeddings too (some makers leave
    that out: gpt-oss-120b is then 5.1 G in place of 5.7 G).

    Args:
        graph: a forward graph whose experts are `grouped_matmul` nodes.
        tokens: tokens that the graph processes in all samples together.
    """
    made_by = {value: node for node in graph.nodes for value in node.outputs}
    rows: dict[Value, int] = {}
    for node in graph.nodes:
        if node.op == "grouped_matmul":
            weights = _origin(node.inputs[1], made_by)
            if weights.kind == "parameter":
                rows[weights] = rows.get(weights, 0) + node.inputs[0].type.shape[0]
    # Biases of the experts are looked up, one row for each row of the product.
    products = {(w.type.shape[0], count) for w, count in rows.items()}
    for node in graph.nodes:
        if node.op == "gather":
            table, count = _origin(node.inputs[0], made_by), node.inputs[1].type.elements
            if table.kind == "parameter" and (table.type.shape[0], count) in products:
                rows[table] = count
    total = sum(v.type.elements * v.count for v in graph.parameters)
    skipped = 0
    for weights, count in rows.items():
        experts = weights.type.shape[0]
        idle = max(experts * tokens - count, 0)
        skipped += weights.type.elements * weights.count * idle // (experts * tokens)
    return total - skipped if skipped else None


def _origin(value: Value, made_by: dict[Value, Node]) -> Value:
    """The graph input that views and casts of it were made from."""
    while value in made_by and made_by[value].op in (
        "slice",
        "transpose",
        "reshape",
        "cast",
        "copy",
    ):
        value = made_by[value].inputs[0]
    return value


def experts_note(graph: Graph, tokens: int) -> list[str]:
    """What a reader of the report should know about the parameters of a mixture of experts."""
    active = activated_parameters(graph, tokens)
    if active is None:
        return []
    total = sum(v.type.elements * v.count for v in graph.parameters)
    return [f"activated parameters {_short(active)} of {_short(total)} per token"]


def _short(count: int) -> str:
    """A count in billions or millions."""
    return f"{count / 1e9:.1f} G" if count >= 1e9 else f"{count / 1e6:.2f} M"
