"""Published measurements through the whole program, with more than `opbound validate` prints.

    python benchmarks/published.py [PART OF A TABLE'S NAME ...]

Prints each row as soon as it is known, so that one table can be watched while a figure is changed.
"""

from __future__ import annotations

import sys
import warnings

from opbound.validation import published_tables


def main() -> int:
    warnings.simplefilter("ignore")
    for table in published_tables(only=tuple(sys.argv[1:])):
        for row in table.rows:
            print(f"{row.name:56s} {row.predicted:10.4f} {row.measured:10.4f} {row.error:+7.1%}")
        mean, most = table.mean_abs_error, table.max_abs_error
        print(f"{table.name}: mean {mean:.1%}, largest {most:.1%}\n", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
