"""Hardware files: what is read, and what every mistake is answered with."""

import copy
from pathlib import Path

import pytest
import yaml

from costing.hardware import Hardware
from costing.hardware_base import read_device
from costing.hardware_file import SPECS, list_hardware, load_hardware
from costing.units import parse_quantity
from graph_ir.errors import HardwareError
from graph_ir.tensor_type import DType

DEVICES = list_hardware()
A100 = SPECS / "a100-sxm-80gb.yaml"


def changed(tmp_path: Path, *steps: object, value: object = None, remove: bool = False) -> Path:
    """The A100's file with one entry replaced or removed."""
    data = yaml.safe_load(A100.read_text())
    place = data
    for step in steps[:-1]:
        place = place[step]
    if remove:
        del place[steps[-1]]
    else:
        place[steps[-1]] = copy.deepcopy(value)
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


def test_the_shipped_devices_are_all_there() -> None:
    assert {
        "a100-sxm-80gb",
        "h100-sxm-80gb",
        "h200-sxm-141gb",
        "b200",
        "mi300x",
        "tpu-v5p",
        "l40s",
        "rtx-4090",
        "epyc-9654",
    } <= set(DEVICES)


@pytest.mark.parametrize("name", DEVICES)
def test_every_figure_of_every_device_has_a_source(name: str) -> None:
    device = load_hardware(name)
    assert device.name == name
    figures = _figures(read_device(SPECS / f"{name}.yaml", SPECS))
    assert figures == len(device.sources)
    assert all(len(source) > 5 for source in device.sources.values())


def _figures(node: object) -> int:
    if isinstance(node, dict):
        return int("value" in node) + sum(_figures(child) for child in node.values())
    return sum(_figures(child) for child in node) if isinstance(node, list) else 0


@pytest.mark.parametrize("name", DEVICES)
def test_every_device_can_run_the_common_dtypes(name: str) -> None:
    device = load_hardware(name)
    for dtype in (DType.FLOAT32, DType.BFLOAT16, DType.FLOAT16, DType.INT64, DType.BOOL):
        for kind in ("matrix", "vector"):
            engine = device.engine_for(kind, dtype)
            assert 0 < engine.sustained(dtype) <= engine.peak(dtype)


def test_the_a100_has_its_data_sheet_figures() -> None:
    device = load_hardware("a100-sxm-80gb")
    assert device.engine_for("matrix", DType.BFLOAT16).peak(DType.BFLOAT16) == 312e12
    assert device.main_memory.bandwidth_bytes_per_s == 2.039e12
    assert device.main_memory.capacity_bytes == 80e9
    assert [link.bandwidth_bytes_per_s for link in device.links] == [300e9, 25e9]


@pytest.mark.parametrize("dtype", [DType.FLOAT8_E4M3, DType.INT4])
def test_narrow_types_run_as_float16_where_bfloat16_is_emulated(dtype: DType) -> None:
    engine = load_hardware("v100-sxm2-32gb").engine_for("matrix", dtype)
    assert engine.peak(dtype) == engine.peak_flops["float16"] > engine.peak_flops["bfloat16"]


def test_float32_is_not_silently_run_in_a_narrower_type() -> None:
    device = load_hardware("a100-sxm-80gb")
    assert device.engine_for("matrix", DType.FLOAT32).peak(DType.FLOAT32) == 19.5e12


def test_a_device_of_ones_own_loads_by_path(tmp_path: Path) -> None:
    path = changed(tmp_path, "memory", 1, "bandwidth", "value", value="3 TB/s")
    device = load_hardware(str(path))
    assert isinstance(device, Hardware)
    assert device.main_memory.bandwidth_bytes_per_s == 3e12


@pytest.mark.parametrize(
    ("text", "dimension", "value"),
    [
        ("3.35 TB/s", "bytes/s", 3.35e12),
        ("400 Gbit/s", "bytes/s", 50e9),
        ("40 MiB", "bytes", 40 * 2**20),
        ("989 TFLOPS", "FLOP/s", 989e12),
        ("1979 TOPS", "FLOP/s", 1979e12),
        ("2.5 us", "seconds", 2.5e-6),
        ("87.5 %", "fraction", 0.875),
        ("108 SMs", "count", 108),
    ],
)
def test_units(text: str, dimension: str, value: float) -> None:
    assert parse_quantity(text, dimension, "here") == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("text", ["3.35", "TB/s", "3.35 TB", "3.35 tb/s", "-1 TB/s", 3.35, None])
def test_a_number_without_the_right_unit_is_refused(text: object) -> None:
    with pytest.raises(HardwareError, match=r"file: key: "):
        parse_quantity(text, "bytes/s", "file: key")


def test_an_unknown_device_gets_the_nearest_name() -> None:
    with pytest.raises(HardwareError, match="did you mean 'h100-sxm-80gb'"):
        load_hardware("h100-sxm-80g")


def test_a_missing_file_is_named() -> None:
    with pytest.raises(HardwareError, match=r"nowhere\.yaml"):
        load_hardware("nowhere.yaml")


def test_an_unknown_key_is_refused_with_the_right_one(tmp_path: Path) -> None:
    path = changed(tmp_path, "memory", 1, "bandwith", value={"value": "1 TB/s", "source": "me"})
    with pytest.raises(HardwareError, match=r"memory\[dram\].*'bandwith'.*'bandwidth'"):
        load_hardware(str(path))


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    path = changed(tmp_path, "memory", 1, "capacity", remove=True)
    with pytest.raises(HardwareError, match=r"memory\[dram\].*'capacity' is missing"):
        load_hardware(str(path))


def test_a_figure_needs_a_source(tmp_path: Path) -> None:
    path = changed(tmp_path, "memory", 1, "capacity", "source", remove=True)
    with pytest.raises(HardwareError, match=r"capacity.*'source' is missing"):
        load_hardware(str(path))


def test_a_bare_number_is_refused(tmp_path: Path) -> None:
    path = changed(tmp_path, "memory", 1, "capacity", value=80)
    with pytest.raises(HardwareError, match=r"memory\[dram\]\.capacity"):
        load_hardware(str(path))


def test_an_unknown_dtype_is_refused(tmp_path: Path) -> None:
    bad = {"value": "1 TFLOPS", "source": "me"}
    path = changed(tmp_path, "engines", 0, "peak", "floaty16", value=bad)
    with pytest.raises(HardwareError, match="floaty16"):
        load_hardware(str(path))


def test_an_unknown_algorithm_is_refused(tmp_path: Path) -> None:
    path = changed(tmp_path, "links", 0, "algorithms", value=["ring", "tre"])
    with pytest.raises(HardwareError, match=r"'tre'.*did you mean 'tree'"):
        load_hardware(str(path))


@pytest.mark.parametrize("text", ["a: [1, 2", "just text", "", "- 1"])
def test_what_is_not_a_device_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(HardwareError, match=r"broken\.yaml") as caught:
        load_hardware(str(path))
    assert "\n" not in str(caught.value)
