"""Lets the tests of this directory share `op_samples` and `op_cases`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
