"""Lets the tests of this directory share `blocks` and `dtensor_oracle`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
