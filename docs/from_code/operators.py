"""The operators that are known: the records of graph_ir, and what the importers translate into them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from markup import table

_HEAD = """\
# Operators

Made from the tables that the importers and the cost model use: {records} records, {onnx} ONNX operators in
{domains} domains, {aten} operators of PyTorch. What has no record is an error, or with `--allow-unknown` a
row that says `unknown`. How to add one: [operators of your own](../howto/operators.md).
"""


def page() -> str:
    """The page."""
    from graph_ir.op_def import all_ops
    from importers.onnx_ops import RULES
    from importers.torch_canonical import rules

    records = dict(all_ops())
    aten = sorted(rules())
    onnx: dict[str, list[str]] = defaultdict(list)
    for domain, name in RULES:
        onnx[domain or "ai.onnx"].append(name)
    parts = [
        _HEAD.format(records=len(records), onnx=len(RULES), domains=len(onnx), aten=len(aten)),
        "\n## Records\n\nThe equation names the dims: what is in no result is contracted, `(h d)` is a "
        "compound dim, `(y+r)` a dim read through a window, `...` any dims. "
        '"By shape" stands where it depends on the operands.\n',
    ]
    kinds: dict[str, list[Any]] = defaultdict(list)
    for record in records.values():
        kinds[record.kind].append(record)
    for kind in sorted(kinds):
        rows = [
            (
                f"`{r.name}`",
                f"`{r.equation}`" if isinstance(r.equation, str) else "by shape",
                "yes" if r.gradient else "no",
            )
            for r in sorted(kinds[kind], key=lambda r: r.name)
        ]
        parts.append(f"\n### {kind.replace('_', ' ').capitalize()}: {len(rows)}\n\n")
        parts.append(table(["record", "equation", "gradient"], rows))
    parts.append("\n## ONNX operators\n")
    parts += [f"\n### {d}: {len(names)}\n\n{_listed(names)}" for d, names in sorted(onnx.items())]
    parts.append(
        f"\n## PyTorch operators\n\nAn operator's overloads and its form with a trailing underscore "
        "(in place) are the same operator. Operators that are not listed are decomposed by PyTorch's own "
        f"definitions, where it has one.\n\n{_listed(aten)}"
    )
    return "".join(parts)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in sorted(set(names))) + "\n"
