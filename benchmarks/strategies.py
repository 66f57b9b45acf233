"""How long it takes to split a graph by one strategy after the other, beside splitting each on its own.

    python benchmarks/strategies.py [--full]

Strategies on one graph share its logical axes, the passes in which they agree, and prices. *Alone* is the
same strategies where nothing is shared: each on a graph of its own. `--full` adds architectures that take
a minute to trace. Times are the processor's, without the import.
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from pathlib import Path
from typing import TYPE_CHECKING

from graph_ir.garbage import no_collection

if TYPE_CHECKING:
    from costing.node_cost import NodePricer
    from graph_ir.graph import Graph
    from opbound.options import Options
    from opbound.shared_work import SharedWork

MESHES = {
    "convolutions": "dp=64 dp=32,tp=2 dp=16,tp=4 dp=8,pp=2 dp=32,pp=4 dp=4,tp=2,pp=2 dp=64:z1 dp=64:z3 "
    "dp=16,tp=4:z3 dp=4,tp=4,pp=3:z1 dp=8,pp=6",
    "layers": "dp=32 dp=16,tp=2 dp=8,tp=4:sp dp=8,pp=2 dp=32,pp=4 dp=8,cp=2 dp=8,cp=4 dp=64:z1 dp=64:z3 "
    "dp=8,tp=2,pp=2:sp dp=4,tp=4,pp=3:z3 dp=2,pp=6",
    "large": "dp=64,tp=8,pp=16,cp=2:sp dp=64,tp=8,pp=16:sp dp=32,tp=8,pp=16,cp=2:sp dp=64,tp=4,pp=16 "
    "dp=32,tp=8,pp=8,cp=4:sp dp=64,tp=8,cp=2:sp:z3 dp=64:z3 dp=64:z1 dp=64,tp=8:sp dp=32,tp=2,pp=16:z1 "
    "dp=64,tp=8,pp=16,cp=2:sp:zb-h1 dp=64,tp=8,pp=16,cp=2:sp:zb-v dp=64,tp=8,pp=16,cp=2:sp:dualpipe "
    "dp=64,tp=8,pp=16,cp=2:sp:interleaved-4 dp=8,tp=8,pp=14:sp dp=4,tp=8,pp=30:sp:z3 dp=8,tp=4,cp=4,pp=4:z3",
    "experts": "dp=64,tp=8,pp=16:sp dp=8,ep=8 dp=8,ep=8,pp=4 dp=8,ep=8,tp=4:sp dp=4,ep=8,tp=2,pp=4:z1 "
    "dp=2,ep=4,cp=2,pp=4:z3 dp=64:z3 dp=16,ep=4,tp=8,pp=8:sp dp=64,tp=8,cp=2:sp:z3",
}
"""For each kind of graph: mesh, then sequence parallelism, ZeRO stage and schedule."""


def options_of(text: str) -> Options:
    """The options that one entry of `MESHES` stands for."""
    from opbound.options import Options

    mesh, *words = text.split(":")
    given: dict[str, object] = {}
    for word in words:
        if word == "sp":
            given["sequence_parallel"] = True
        elif word in ("z1", "z3"):
            given["zero"] = int(word[1])
        else:
            given["schedule"] = word.replace("-4", ":4")
    sizes = {axis: int(n) for axis, n in (pair.split("=") for pair in mesh.split(","))}
    return Options(mode="training", parallel=sizes, **given)


def seconds(graph: Graph, options: Options, pricer: NodePricer, work: SharedWork) -> float:
    """Processor time of splitting a step of the graph."""
    from opbound.pricing import split_step

    work.step_graph(graph, options)  # The backward pass is derived before.
    start = time.process_time()
    split_step(graph, options, pricer, lambda _: None, 256, work=work)
    return time.process_time() - start


def row(title: str, model: str, kind: str, **given: object) -> None:
    """Prints one graph's line."""
    from costing.hardware_file import load_hardware
    from costing.node_cost import NodePricer
    from graph_ir.fold import fold
    from opbound.analysis import Analysis
    from opbound.options import Options
    from opbound.shared_work import SharedWork

    options = Options(mode="training", batch=64, **given)
    graph = fold(Analysis(model, options).imported("training", options.sequence).graph)
    hardware = load_hardware("h100-sxm-80gb")
    strategies = [options_of(text) for text in MESHES[kind].split()]
    pricer, work = NodePricer(hardware), SharedWork()
    first, *further = [seconds(graph, s, pricer, work) for s in strategies]
    alone = [seconds(graph, s, NodePricer(hardware), SharedWork()) for s in strategies[1:]]
    mean, alone_mean = (sum(x) / len(x) for x in (further, alone))
    print(
        f"{title:<34}{1e3 * first:10.0f}{len(further):10}{1e3 * mean:9.0f}{1e3 * max(further):9.0f}"
        f"{1e3 * alone_mean:12.0f}{alone_mean / mean:8.1f}"
    )


@no_collection()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--full", action="store_true", help="also Llama-3.1-405B and DeepSeek-V3 (a minute)"
    )
    full = parser.parse_args().full
    from partitioner.strategies import split_passes

    split_passes()
    spec = importlib.util.find_spec("onnx")
    light = Path(spec.origin).parent / "backend/test/data/light/light_resnet50.onnx"
    print("one strategy after the other on one graph, milliseconds of the processor")
    print(
        f"{'graph':<34}{'first':>10}{'further':>10}{'mean':>9}{'most':>9}{'alone, mean':>12}{'x':>8}"
    )
    row("ResNet-50", str(light), "convolutions")
    row("GPT-2", "hf:gpt2", "layers", sequence=1024, dtype="bf16")
    if full:
        row("Llama-3.1-405B", "hf:llama-3.1-405b", "large", sequence=8192, dtype="bf16")
        row("DeepSeek-V3", "hf:deepseek-v3", "experts", sequence=4096, dtype="bf16")


if __name__ == "__main__":
    main()
