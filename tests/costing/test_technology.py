"""Scaling a device to another technology, and energy: against data sheets, and against arithmetic."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from costing.energy import Energy, operator_energy
from costing.engine import MATRIX, VECTOR
from costing.hardware_file import list_hardware, load_hardware
from costing.op_cost import OpCost
from costing.scaling import Target, node_factors, scaled_device
from costing.technology import build_of, link, memory, node
from graph_ir.errors import HardwareError
from graph_ir.tensor_type import DType
from opbound.cli import main

NODES = ("n12", "n10", "n7", "n6", "n5", "n4", "n4p", "n3", "n2", "a16", "a14", "a10")


def scaled(tmp_path, base, *options):
    path = tmp_path / "scaled.yaml"
    assert main(["hardware", "scale", base, *options, "-o", str(path)]) == 0
    return load_hardware(str(path))


def test_each_node_is_denser_faster_and_thriftier_than_the_last():
    chain = [
        node(name) for name in ("n16", "n12", "n10", "n7", "n5", "n4p", "n3", "n2", "a14", "n1")
    ]
    for old, new in itertools.pairwise(chain):
        assert new.density > old.density, new.name
        assert new.power < old.power, new.name
        assert new.sram_um2 <= old.sram_um2, new.name
    assert node("n5").density == pytest.approx(2.0 * 1.6 * 1.8)
    assert node("n7").power == pytest.approx(0.65 * 0.6)


@pytest.mark.parametrize(
    ("name", "stacks", "gbytes_per_s"),
    [
        # JEDEC's rates: a stack of HBM2E 460.8 GB/s, HBM3 819.2, HBM4 2048; DDR5-4800 38.4 a channel.
        *(("hbm2e", 1, 460.8), ("hbm3", 1, 819.2), ("hbm4", 1, 2048), ("ddr5", 12, 460.8)),
        # 384 bits: an RTX 3090 Ti-class board of 21 Gbit/s, and an L40S's 16 Gbit/s beside its 18.
        *(("gddr6x", 12, 1008), ("gddr6", 12, 768)),
    ],
)
def test_memory_generations_have_their_standards_bandwidth(name, stacks, gbytes_per_s):
    assert memory(name).bandwidth_bytes_per_s(stacks) == pytest.approx(gbytes_per_s * 1e9)


@pytest.mark.parametrize(
    ("name", "gbytes_per_s"), [("pcie4", 31.5), ("pcie5", 63.0), ("nvlink5", 900), ("ib-xdr", 100)]
)
def test_link_generations_have_their_standards_bandwidth(name, gbytes_per_s):
    assert link(name).bandwidth_bytes_per_s == pytest.approx(gbytes_per_s * 1e9, rel=2e-3)


# The pin rates are those at which NVIDIA runs these memories. What technology alone does not give is
# the wider matrix units of the newer designs (twice the products per processor and clock on Hopper):
# the scaled A100 stays this far below the data sheets.
@pytest.mark.parametrize(
    ("real", "options", "compute_error"),
    [
        (
            "h100-sxm-80gb",
            "--node n4 --power 1.75 --dram hbm3 --pin-rate 5.234375 --link nvlink4",
            -0.37,
        ),
        (
            "b200",
            "--node n4p --power 2.5 --area 2 --dram hbm3e --stacks 8 --pin-rate 7.8125 --link nvlink5",
            -0.41,
        ),
    ],
)
def test_an_a100_becomes_its_successors(tmp_path, real, options, compute_error):
    made, wanted = scaled(tmp_path, "a100-sxm-80gb", *options.split()), load_hardware(real)
    assert made.main_memory.bandwidth_bytes_per_s == wanted.main_memory.bandwidth_bytes_per_s
    assert made.links[0].bandwidth_bytes_per_s == wanted.links[0].bandwidth_bytes_per_s
    peaks = [d.engine_for(MATRIX, DType.BFLOAT16).peak(DType.BFLOAT16) for d in (made, wanted)]
    assert peaks[0] / peaks[1] - 1 == pytest.approx(compute_error, abs=0.02)


@pytest.mark.parametrize("new", NODES)
@pytest.mark.parametrize(("area", "power"), [(1.0, 1.0), (2.0, 1.0), (1.0, 1.75)])
def test_no_budget_is_exceeded(new, area, power):
    target = Target(base_node="n7", node=new, area=area, power=power)
    found = node_factors(target, 108)
    old, made = node("n7"), node(new)
    each = 0.7 * old.density / made.density + 0.3 * made.sram_um2 / old.sram_um2
    assert found.processors * each <= 108 * area
    assert found.count * found.clock * made.power / old.power <= power * (1 + 1e-9)
    assert found.clock <= made.speed / old.speed * (1 + 1e-9)
    # One of the two bounds is met: nothing is left lying about.
    assert (found.processors + 1) * each > 108 * area


def test_the_same_node_and_budget_change_nothing(tmp_path):
    base = load_hardware("h100-sxm-80gb")
    made = scaled(tmp_path, "h100-sxm-80gb", "--node", "n4")
    assert made.engines == base.engines
    assert made.memory == base.memory
    assert made.energy.watts == base.energy.watts
    assert made.energy.links_j_per_byte == pytest.approx(dict(base.energy.links_j_per_byte))


def test_every_changed_figure_says_what_it_comes_from(tmp_path):
    base = load_hardware("a100-sxm-80gb")
    made = scaled(tmp_path, "a100-sxm-80gb", "--node", "n3", "--dram", "hbm4", "--link", "nvlink5")
    for path, source in made.sources.items():
        if path.startswith("energy"):
            continue
        assert source == base.sources[path] or "scaled from a100-sxm-80gb" in source, path
    peak = made.sources["engines[tensor_core].peak.bfloat16"]
    assert "312 TFLOPS" in peak
    assert "TSMC N3E" in peak
    assert "power x 1" in peak
    assert "JESD270-4" in made.sources["memory[dram].bandwidth"]
    launches = [p for p in made.sources if p.startswith("launch")]
    assert launches
    assert all(made.sources[p] == base.sources[p] for p in launches)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("scale", "which device"),
        ("scale h100-sxm-80gb", "nothing to scale"),
        ("scale h100-sxm-80gb --node n33", "n3"),
        ("scale h100-sxm-80gb --dram gddr7", "--stacks"),
        ("scale h100-sxm-80gb --link pcie6", "pcie"),
        ("scale h100-sxm-80gb --node n3 --area 0.0001", "holds no processor"),
        ("scale h100-sxm-80gb --node n3 --power -1", "--power"),
        ("h100-sxm-80gb --node n3", "hardware scale BASE"),
    ],
)
def test_what_cannot_be_scaled_is_told_in_one_line(words, message, capsys):
    assert main(["hardware", *words.split()]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_a_file_of_ones_own_needs_its_node_told(tmp_path):
    data = yaml.safe_load(Path(load_hardware("a100-sxm-80gb").path).read_text())
    with pytest.raises(HardwareError, match="--base-node"):
        scaled_device(data, "new", Target(node="n3"))


# --- energy -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n in list_hardware() if build_of(n) is not None])
def test_large_products_run_at_the_power_limit(name):
    """The anchor of the estimate: idle power and a second of half-precision products are the limit."""
    device = load_hardware(name)
    dtype = DType.BFLOAT16
    engine = device.engine_for(MATRIX, dtype)
    cost = OpCost(engine=engine.name, terms={"compute": 1.0 + device.main_memory.latency_s})
    joules = operator_energy(device, cost, [dtype])
    assert joules + device.energy.idle_watts == pytest.approx(device.energy.watts)


def test_terms_add_up_and_wider_types_take_more():
    device = load_hardware("a100-sxm-80gb")
    moved = OpCost(bytes_read=3 * 10**9, bytes_written=10**9, engine="cuda_core")
    assert operator_energy(device, moved, [DType.FLOAT32]) == pytest.approx(
        # The memory, and the way across a chip of the 7 nm node.
        4e9 * 8 * (3.92e-12 + 9.6e-12 * 0.65 * 0.6)
    )
    sent = OpCost(engine="network", link_bytes={"nvlink": 1e9})
    assert operator_energy(device, sent, [DType.FLOAT32]) == pytest.approx(8e9 * 8e-12)
    vector = device.engine_for(VECTOR, DType.FLOAT32)
    second = {"compute": 1.0 + device.main_memory.latency_s}
    watts = operator_energy(device, OpCost(engine=vector.name, terms=second), [DType.FLOAT32])
    # All vector units together stay within what the board allows.
    assert 0.5 * device.energy.watts < watts < 1.05 * device.energy.watts


def test_where_power_is_not_known_nothing_is_said(tmp_path):
    device = replace(load_hardware("a100-sxm-80gb"), energy=None)
    assert operator_energy(device, OpCost(bytes_read=1), [DType.FLOAT32]) is None


def test_a_file_states_its_own_energy(tmp_path):
    path = load_hardware("epyc-9654").path
    text = Path(path).read_text().replace("name: epyc-9654", "name: mine", 1)
    own = tmp_path / "mine.yaml"
    own.write_text(text)
    assert load_hardware(str(own)).energy is None
    more = "energy:\n  power: {value: 300 W, source: s}\n  idle: {value: 90 W, source: s}\n"
    own.write_text(text + more + "  memory: {value: 10 pJ/bit, source: s}\n")
    assert load_hardware(str(own)).energy == Energy(300.0, 90.0, pytest.approx(8e-11), {})
    own.write_text(
        text + more.replace("90 W", "400 W") + "  memory: {value: 1 pJ/bit, source: s}\n"
    )
    with pytest.raises(HardwareError, match="not below the limit"):
        load_hardware(str(own))


def test_what_memory_and_links_draw_is_taken_from_the_processors(tmp_path):
    """700 W less memory and links at their full rates: 96 and 24 W in an H100, 229 W for five HBM4."""
    base = load_hardware("h100-sxm-80gb")
    made = scaled(tmp_path, "h100-sxm-80gb", "--dram", "hbm4")
    infiniband = 50e9 * 8 * 21e-12
    links = 450e9 * 8 * 5.5e-12 + infiniband
    before = 700 - 3.35e12 * 8 * 3.6e-12 - links
    after = 700 - 5 * 2.048e12 * 8 * 2.8e-12 - links
    peaks = [d.engine_for(MATRIX, DType.BFLOAT16).peak(DType.BFLOAT16) for d in (made, base)]
    assert peaks[0] / peaks[1] == pytest.approx(after / before, rel=1e-4)
    assert made.engines[0].processors == base.engines[0].processors


def test_a_memory_that_takes_all_power_is_refused(tmp_path, capsys):
    words = "scale h100-sxm-80gb --dram hbm4 --stacks 16"
    assert main(["hardware", *words.split(), "-o", str(tmp_path / "x.yaml")]) == 2
    assert "memory and links alone take" in capsys.readouterr().err


@pytest.mark.parametrize("name", [n for n in list_hardware() if load_hardware(n).energy])
def test_streaming_takes_less_than_the_limit(name):
    """Main memory at its full rate, with an add for each number that comes: below the power limit."""
    device = load_hardware(name)
    level = device.main_memory
    moved = round(level.sustained_bytes_per_s)
    vector = device.engine_for(VECTOR, DType.FLOAT32)
    flops_s = moved / 4 / vector.sustained(DType.FLOAT32)
    cost = OpCost(
        bytes_read=moved, engine=vector.name, terms={"compute": flops_s + level.latency_s}
    )
    joules = operator_energy(device, cost, [DType.FLOAT32])
    assert joules is not None
    assert device.energy.idle_watts < joules + device.energy.idle_watts < device.energy.watts
