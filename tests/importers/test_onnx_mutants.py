"""Two thousand damaged files: one line each, in ten seconds and a gigabyte at most."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHARE = 500


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, 2000, SHARE))
def test_no_damage_is_a_traceback_a_hang_or_a_flood(zoo, first):
    run = subprocess.run(
        [
            *(sys.executable, "-W", "ignore", str(Path(__file__).with_name("onnx_mutants.py"))),
            *(str(zoo), str(first), str(first + SHARE)),
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=SHARE * 10,
        check=False,
    )
    lines = run.stdout.splitlines()
    assert run.returncode == 0, run.stderr[-2000:]
    assert [line for line in lines if line.startswith("FAULT")] == []
    assert lines[-1].startswith("DONE")
