"""Predictions against measured tables of operators, by shape, and of models' nodes.

    python benchmarks/accuracy.py [FOLDER]

FOLDER holds the measured tables; without it OPBOUND_SHARED/measured or ../shared/measured is taken.
Prints the mean absolute relative error of each table, its median, and the bias.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from opbound.validation_measured import measured_folder
from opbound.validation_operators import SOURCES


def main() -> int:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else measured_folder()
    if folder is None:
        print("no measured tables: name their folder")
        return 2
    print(f"{'table':55s} {'rows':>7s} {'mean':>7s} {'median':>7s} {'bias':>7s}")
    for table in SOURCES:
        for c in table(folder):
            # A row that is measured although it should cost nothing has no logarithm.
            ratio = c.predicted_s[c.predicted_s > 0] / c.measured_s[c.predicted_s > 0]
            bias = float(np.exp(np.log(ratio).mean()) - 1)
            median = float(np.median(c.errors))
            print(f"{c.name:55s} {len(c.errors):7d} {c.mean:7.1%} {median:7.1%} {bias:+7.1%}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
