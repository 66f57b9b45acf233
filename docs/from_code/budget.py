"""The reference of the budget file, from the code that reads it."""

from __future__ import annotations

from dataclasses import fields

from markup import prose, sentence, table

_HEAD = """\
# Budget file

Made from the code that reads it. `opbound init MODEL -o opbound.toml` writes one from a model as it is;
`opbound check MODEL` checks it. How to use it: [budgets](../howto/budget.md), [in CI](../ci.md).

A budget has one `[[target]]` or several. A target has a `name`, any option of an analysis (below), limits
for the whole model under `[target.limits]`, the largest growth over a baseline under `[target.growth]`, the
lists `forbid_operators` and `forbid_dtypes`, and a `[[target.part]]` for every module or kind of operator
with limits of its own. An unknown key is an error that names the nearest known one.
"""


def page() -> str:
    """The page."""
    from opbound.options import Options
    from reports.gate import budget, metrics

    rows = [
        (
            f"`{m.name}`",
            prose(m.about),
            ", ".join(f"`{unit}`" for unit in metrics._UNITS[m.unit] if unit) or "-",
            "no" if m.of_rows is None else "yes",
        )
        for m in metrics.METRICS.values()
    ]
    options = [entry.name for entry in fields(Options) if entry.name != "auto"]
    return (
        f"{_HEAD}\n## Limits\n\nA limit without a unit is in the base unit: seconds, bytes, a fraction of 1, "
        "or a count. A part is limited where the last column says yes. `growth` takes the same names, each "
        'with a share such as `"5 %"`.\n\n'
        + table(["name", "what it is", "units", "for parts"], rows)
        + "\n## Keys of a part\n\n"
        + ", ".join(f"`{key}`" for key in budget._PART_KEYS)
        + f". {sentence('`module` is a path, `operator` a kind; both may be given')}\n"
        + "\n## Options of an analysis\n\nEach is the option of the same name of `opbound analyze`: "
        + ", ".join(f"`{option}`" for option in options)
        + ".\n"
    )
