"""The examples run as their docstrings say."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(*arguments):
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_compare_devices(light):
    script = EXAMPLES / "compare_devices.py"
    lines = run(script, light / "light_squeezenet.onnx", "l40s", "h100-sxm-80gb")
    assert [line.split()[0] for line in lines] == ["l40s", "h100-sxm-80gb"]


@pytest.mark.slow
def test_choose_a_split():
    pytest.importorskip("transformers")
    script = EXAMPLES / "choose_a_split.py"
    *meshes, fastest = run(script, "hf:gpt2", 2, "--batch", 4, "--sequence", 64)
    assert len(meshes) == 3
    assert fastest.startswith("fastest that fits: {'dp': ")
