"""A device's file that names another as its base."""

from pathlib import Path

import pytest

from costing.hardware_file import load_hardware
from graph_ir.errors import HardwareError
from graph_ir.tensor_type import DType

SMALL = """
base: a100-sxm-80gb
name: small
title: "A smaller A100"
engines:
  - name: cuda_core
    peak:
      float32: {value: 10 TFLOPS, source: plan}
      bfloat16: null
links: []
sources:
  plan: "our own plan"
"""


def write(folder: Path, name: str, text: str) -> str:
    path = folder / f"{name}.yaml"
    path.write_text(text)
    return str(path)


def test_only_what_differs_is_said(tmp_path: Path) -> None:
    base, small = load_hardware("a100-sxm-80gb"), load_hardware(write(tmp_path, "small", SMALL))
    (engine,) = small.engines
    assert engine.peak(DType.FLOAT32) == 10e12
    assert "bfloat16" not in engine.peak_flops
    assert engine.tiles == base.engines[1].tiles
    assert small.memory == base.memory
    assert small.links == ()


def test_what_is_taken_over_says_whose_it_is(tmp_path: Path) -> None:
    small = load_hardware(write(tmp_path, "small", SMALL))
    assert small.sources["engines[cuda_core].peak.float32"] == "our own plan"
    taken = small.sources["memory[dram].bandwidth"]
    assert taken.startswith("as a100-sxm-80gb: NVIDIA A100")


def test_a_base_may_lie_beside_the_file_and_have_a_base_itself(tmp_path: Path) -> None:
    write(tmp_path, "small", SMALL)
    text = 'base: small.yaml\nname: smaller\ntitle: "t"\n'
    smaller = load_hardware(write(tmp_path, "smaller", text))
    assert smaller.engines[0].peak(DType.FLOAT32) == 10e12
    assert smaller.sources["engines[cuda_core].peak.float32"] == "as small: our own plan"


@pytest.mark.parametrize(
    ("base", "says"),
    [("a100-sxm-80", "did you mean 'a100-sxm-80gb'"), ("it.yaml", "based on each other")],
)
def test_a_wrong_base_is_named(tmp_path: Path, base: str, says: str) -> None:
    text = f'base: {base}\nname: it\ntitle: "t"\n'
    with pytest.raises(HardwareError, match=says):
        load_hardware(write(tmp_path, "it", text))
