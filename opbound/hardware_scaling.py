"""`opbound hardware scale BASE`: a device's file in another technology."""

from __future__ import annotations

import argparse
from pathlib import Path

from graph_ir.errors import HardwareError, OpboundError

EXAMPLES = """\
examples:
  opbound hardware
  opbound hardware h100-sxm-80gb
  opbound hardware scale h100-sxm-80gb --node n3 --dram hbm4 --link nvlink5 -o future.yaml
  opbound hardware scale a100-sxm-80gb --node n4 --power 1.75 --dram hbm3 --pin-rate 5.234375 -o h.yaml
"""


def add_scale_options(parser: argparse.ArgumentParser) -> None:
    """Adds `scale BASE` and its options to the command `hardware`."""
    parser.add_argument(
        "base", nargs="?", metavar="BASE", help="with the word scale: the device that is scaled"
    )
    group = parser.add_argument_group(
        "scale", "a study of technologies: the file of BASE in another node, memory or link"
    )
    group.add_argument("--node", metavar="NODE", help="process node: n12 to n2, a16, a14, n1")
    group.add_argument(
        "--base-node", metavar="NODE", help="of BASE, where opbound does not know it"
    )
    group.add_argument(
        "--dram", metavar="NAME", help="gddr6, gddr7, hbm2e, hbm3, hbm3e, hbm4, ddr5 ..."
    )
    group.add_argument(
        "--stacks", type=int, metavar="N", help="stacks, packages or channels (default: BASE's)"
    )
    group.add_argument(
        "--pin-rate", type=float, metavar="GBIT/S", help="per pin (default: the standard's highest)"
    )
    group.add_argument(
        "--link",
        action="append",
        default=[],
        metavar="NAME",
        help="nvlink3-5, ucie, pcie4-7, ib-hdr, ib-ndr, ib-xdr; may be repeated",
    )
    group.add_argument(
        "--area", type=float, default=1.0, metavar="F", help="die area over BASE's (default: 1)"
    )
    group.add_argument(
        "--power", type=float, default=1.0, metavar="F", help="power over BASE's (default: 1)"
    )
    group.add_argument("-o", "--output", metavar="FILE", help="the new file (.yaml)")


def scale(arguments: argparse.Namespace) -> None:
    """Writes the scaled file.

    Raises:
        OpboundError: if the arguments name no base, no change, or cannot be applied.
    """
    from costing.hardware_base import read_device
    from costing.hardware_file import SPECS, load_hardware
    from costing.scaling import Target, scaled_device
    from costing.technology import build_of, memory
    from opbound.device.device_file import file_text
    from opbound.output import Output

    if arguments.base is None:
        raise OpboundError(
            "say which device is scaled: opbound hardware scale BASE --node n3 -o FILE"
        )
    if not (arguments.node or arguments.dram or arguments.link):
        raise OpboundError("nothing to scale: give --node, --dram or --link")
    if (arguments.stacks or arguments.pin_rate) and not arguments.dram:
        raise OpboundError("--stacks and --pin-rate describe a memory: give --dram too")
    sizes = {name: getattr(arguments, name) for name in ("area", "power", "stacks", "pin_rate")}
    for name, value in sizes.items():
        if value is not None and not 0 < value < 1e6:
            raise OpboundError(f"--{name.replace('_', '-')} {value} is not a positive size")
    # Loading it finds every mistake, so that what follows meets only what is right.
    hardware = load_hardware(arguments.base)
    build = build_of(hardware.name)
    stacks = arguments.stacks
    if stacks is None and build and arguments.dram:
        same = memory(arguments.dram).family == memory(build.memory).family
        stacks = build.stacks if same else None
    output = Path(arguments.output or f"{hardware.name}-scaled.yaml")
    if output.suffix not in (".yaml", ".yml"):
        raise HardwareError(f"-o {output}: a hardware file's name ends in .yaml")
    target = Target(
        base_node=arguments.base_node or (build.node if build else None),
        node=arguments.node,
        memory=arguments.dram,
        stacks=stacks,
        pin_bits_per_s=arguments.pin_rate * 1e9 if arguments.pin_rate else None,
        links=tuple(arguments.link),
        area=arguments.area,
        power=arguments.power,
        watts=build.watts if build else None,
        idle_watts=build.idle_watts if build else None,
        base_memory=build.memory if build else None,
    )
    data = read_device(Path(hardware.path), SPECS)
    text = file_text(
        scaled_device(data, output.stem, target),
        f"# {hardware.name} in another technology, by opbound hardware scale.\n",
    )
    with Output(arguments.output) as out:
        out.write(text)


def only_for_scaling(arguments: argparse.Namespace) -> None:
    """Raises OpboundError if options of `scale` are given without the word."""
    given = (arguments.base, arguments.node, arguments.dram, arguments.output, *arguments.link)
    if any(given):
        raise OpboundError(
            "to scale a device write: opbound hardware scale BASE --node n3 -o FILE (see opbound "
            "hardware --help)"
        )
