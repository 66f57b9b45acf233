"""Imports damaged copies of ONNX files in a process with little memory; prints what went wrong.

python onnx_mutants.py FOLDER FIRST LAST: mutants number FIRST to LAST - 1 of the files in FOLDER.
"""

import csv
import json
import os
import random
import resource
import signal
import sys
import tempfile
from pathlib import Path

LIMIT_S = 10
LIMIT_BYTES = 1 << 30
MAX_FILE_BYTES = 4 << 20


def mutant(data, number):
    """A damaged copy: bits flipped, bytes overwritten, cut short, or a piece doubled."""
    rng = random.Random(number)
    damaged = bytearray(data)
    kind = number % 6
    if kind > 3:
        return meaningless(data, rng)
    if kind == 0:
        for _ in range(rng.choice((1, 1, 3, 20))):
            damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
    elif kind == 1:
        # Numbers and names stand at the front of messages, so most of it hits the first half.
        for _ in range(rng.choice((1, 4))):
            damaged[rng.randrange(max(len(damaged) // 2, 1))] = rng.randrange(256)
    elif kind == 2:
        del damaged[rng.randrange(len(damaged)) :]
    else:
        start = rng.randrange(len(damaged))
        piece = damaged[start : start + rng.randrange(1, 200)]
        place = rng.randrange(len(damaged))
        damaged[place:place] = piece
    return bytes(damaged)


def meaningless(data, rng):
    """A well-formed file that says what cannot be, or only another thing."""
    import onnx

    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except Exception:
        return data
    graph = model.graph
    numbers = (-(1 << 63), -7, -1, 0, 1, 2, 3, 1 << 20, 1 << 40, 1 << 62)
    for _ in range(rng.choice((1, 1, 2, 5))):
        node = rng.choice(graph.node) if graph.node else onnx.NodeProto()
        change = rng.randrange(8)
        if change == 0 and node.attribute:
            attribute = rng.choice(node.attribute)
            if attribute.ints:
                attribute.ints[rng.randrange(len(attribute.ints))] = rng.choice(numbers)
            else:
                attribute.i = rng.choice(numbers)
        elif change == 1 and graph.initializer:
            tensor = rng.choice(graph.initializer)
            if tensor.dims:
                tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice(numbers)
            else:
                tensor.data_type = rng.randrange(30)
        elif change == 2 and graph.node:
            node.op_type = rng.choice(graph.node).op_type
        elif change == 3 and node.input:
            node.input[rng.randrange(len(node.input))] = rng.choice(
                ["", *rng.choice(graph.node).output]
            )
        elif change == 4 and graph.input:
            type_ = rng.choice(graph.input).type.tensor_type
            if type_.shape.dim:
                rng.choice(type_.shape.dim).dim_value = rng.choice(numbers)
            else:
                type_.elem_type = rng.randrange(30)
        elif change == 5 and node.attribute:
            del node.attribute[rng.randrange(len(node.attribute))]
        elif change == 6 and node.output:
            node.output.append(rng.choice(node.output))
        elif change == 7:
            known = [s for s in onnx.defs.get_all_schemas() if s.domain in ("", "ai.onnx.ml")]
            node.op_type = rng.choice(known).name
    return model.SerializeToString()


def main(folder, first, last):
    from graph_ir.errors import OpboundError
    from importers import load

    files = [
        p
        for p in sorted(Path(folder).iterdir())
        if p.suffix in (".onnx", ".onnxtxt", ".pbtxt") and 0 < p.stat().st_size < MAX_FILE_BYTES
    ]
    with (Path(folder) / "INDEX.csv").open(encoding="utf-8") as file:
        dims = {r["file"]: json.loads(r["reference_dims"] or "{}") for r in csv.DictReader(file)}
    load(files[0])  # the libraries are loaded before memory is limited
    resource.setrlimit(resource.RLIMIT_DATA, (LIMIT_BYTES, LIMIT_BYTES))

    def too_slow(*_):
        raise TimeoutError(f"over {LIMIT_S} s")

    signal.signal(signal.SIGALRM, too_slow)
    imported = refused = 0
    with tempfile.TemporaryDirectory() as work:
        for number in range(first, last):
            source = files[number % len(files)]
            path = Path(work) / f"mutant{source.suffix}"
            path.write_bytes(mutant(source.read_bytes(), number))
            signal.alarm(LIMIT_S)
            try:
                graph = load(path, dims=dims.get(source.name)).graph
                imported += sum(n.flops >= 0 for n in graph.nodes) >= 0
            except OpboundError as error:
                refused += 1
                if os.environ.get("MUTANTS_TRACE"):
                    print("REFUSED", number, source.name, str(error)[:150])
                if "\n" in str(error) or len(str(error)) > 1500:
                    print(f"FAULT {number} {source.name}: a message of many lines: {error!r}")
            except BaseException as error:
                print(f"FAULT {number} {source.name}: {type(error).__name__}: {str(error)[:300]!r}")
                if os.environ.get("MUTANTS_TRACE"):
                    import traceback

                    traceback.print_exc()
            finally:
                signal.alarm(0)
    print(f"DONE {imported} imported, {refused} refused")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
