"""Runs a partitioned step on every rank of its mesh, in numpy, with real collectives.

The oracle of the whole partitioner. What it knows is what a runtime would be told: every rank's graph, its
own rank number, how its inputs are cut out of the whole ones (`Value.shards`), and what a collective means.
It knows nothing of logical axes, strategies or placements. What the ranks compute, joined, must be what one
device computes.

A folded graph is run as it is: a block is repeated, and a value of a block is a list with an array per
layer. A pipeline's stages run as coroutines that wait for what they receive.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from itertools import combinations
from math import prod
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from graph_ir.evaluate import run_node
from graph_ir.graph import Block, Graph, Node, Value
from graph_ir.partitioned import PartitionedGraph, Stage
from graph_ir.sharding import Shard, attrs_of_rank

Array = NDArray[Any]
Layers = list[Array | None]
"""The array of every layer; a value of count 1 has one."""
_TERMS: Mapping[str, Any] = {"sum": np.add, "max": np.maximum, "min": np.minimum}


def group_of(rank: int, size: int, stride: int) -> list[int]:
    """The ranks r, r + stride, ... that a rank belongs to."""
    first = rank - rank // stride % size * stride
    return [first + i * stride for i in range(size)]


def _place(node: Node, what: str) -> Shard:
    """How a collective takes apart or puts together."""
    attrs = node.attrs
    zigzag = attrs.get("zigzag") == what
    size, stride = attrs["group_size"], attrs["group_stride"]
    return Shard(attrs["axis"], size, stride, *attrs.get(what, (None,)), zigzag=zigzag)


def _even_topk(node: Node, operands: Sequence[Array]) -> list[Array]:
    """Experts in turn, whatever the scores say.

    A product of rows grouped by expert takes for granted that every expert gets as many rows, on every
    device too. Tokens at the same place of the sequence choose the same experts wherever it is cut.
    """
    (scores,) = operands
    *rows, k = node.outputs[0].type.shape
    chosen = (np.arange(prod(rows)).reshape(*rows, 1) * k + np.arange(k)) % scores.shape[-1]
    return [np.take_along_axis(scores, chosen, axis=-1), chosen]


def _scatter_rows(node: Node, operands: Sequence[Array]) -> list[Array]:
    """Rows written where an index says: of a constant of row numbers, a device needs the first ones."""
    buffer, index, rows = operands
    shape = node.outputs[0].type.shape
    assert buffer.ndim == rows.ndim == index.ndim == len(shape) == 1
    result = buffer[: shape[0]].copy()
    result[index] = rows[: len(index)]
    return [result]


_MEANINGS = {"topk": _even_topk, "scatter_nd": _scatter_rows}


class Wire(Protocol):
    """How ranks exchange arrays."""

    def collective(
        self, node: Node, operands: Mapping[int, Sequence[Array]]
    ) -> dict[int, list[Array]]:
        """The results on every rank that this process runs."""


class InProcess:
    """All ranks are in this process: a collective sees all operands at once."""

    def collective(
        self, node: Node, operands: Mapping[int, Sequence[Array]]
    ) -> dict[int, list[Array]]:
        size, stride = node.attrs["group_size"], node.attrs["group_stride"]
        found: dict[int, list[Array]] = {}
        for rank in operands:
            members = group_of(rank, size, stride)
            index = members.index(rank)
            found[rank] = [
                self._one(node, [operands[m][i] for m in members], index, value)
                for i, value in enumerate(node.outputs)
            ]
        return found

    def _one(self, node: Node, parts: Sequence[Array], index: int, out: Value) -> Array:
        shape = out.type.shape
        term = _TERMS[node.attrs.get("reduction", "sum")]
        if node.op == "all_reduce":
            return np.asarray(reduce(term, parts))
        if node.op == "all_gather":
            return _place(node, "concat").join(parts, shape)
        if node.op == "reduce_scatter":
            return _place(node, "split").cut(np.asarray(reduce(term, parts)), index)
        if node.op == "all_to_all":
            split = _place(node, "split")
            return _place(node, "concat").join([split.cut(p, index) for p in parts], shape)
        if node.op == "collective_permute":
            return parts[(index - 1) % len(parts)]
        raise ValueError(f"what does {node.op} mean?")


class StageRun:
    """One stage on the ranks of this process that work on it.

    Args:
        graph: of one rank of the stage.
        ranks: rank numbers.
        given: the whole array of every graph input, by name: one per layer that the stage holds.
        wire: how ranks exchange arrays.
        peers: all ranks of the stage, in whatever process.
    """

    def __init__(
        self,
        graph: Graph,
        ranks: Sequence[int],
        given: Callable[[Value], Sequence[Array]],
        wire: Wire,
        peers: Collection[int] = (),
    ) -> None:
        self.graph = graph
        self.ranks = ranks
        self.peers = {*peers, *ranks}
        self.wire = wire
        self.values: dict[Value, dict[int, Layers]] = {}
        self.current: dict[Value, dict[int, Array]] = {}
        """What carried values are in the present repetition."""
        self.last: dict[Value, int] = {}
        """The layer of a block's value that was computed last."""
        self.sent: dict[str, dict[int, Array]] = {}
        """What other stages may take, by the value's name."""
        self.posted: dict[str, dict[int, list[Array]]] = {}
        """Operands of collectives with other stages, by the node's name."""
        names = {node.name: node for node in graph.nodes}
        self.partner: dict[Block, set[Block]] = {}
        for block in graph.blocks:
            origins = {n.origin for n in graph.nodes[block.start : block.stop]}
            own = {graph.block_of.get(names[o]) for o in origins if o in names}
            self.partner[block] = {b for b in own if b is not None} | {block}
        for value in graph.inputs:
            wholes = given(value)
            assert len(wholes) == value.count, value
            self.values[value] = {r: [own_part(value, w, r) for w in wholes] for r in ranks}

    def run(self) -> Generator[str, dict[int, Any], None]:
        """Yields the name of the node that it waits for, and is sent its results."""
        blocks = {b.start: b for b in self.graph.blocks}
        position = 0
        while position < len(self.graph.nodes):
            block = blocks.get(position)
            if block is not None:
                self._block(block)
                position = block.stop
                continue
            node = self.graph.nodes[position]
            if node.op == "recv":
                (out,) = node.outputs
                arrays = yield node.name
                self.values[out] = {r: [arrays[r]] for r in self.ranks}
            elif node.op == "send":
                name = node.name.removesuffix(".send")
                self.sent[name] = {r: self._read(node.inputs[0], node, r, 0) for r in self.ranks}
            elif self._meets_other_stages(node):
                self.posted[node.name] = {
                    r: [self._read(v, node, r, 0) for v in node.inputs] for r in self.ranks
                }
                self._keep(node, (yield node.name), 0)
            else:
                for layer in range(node.count):
                    self._node(node, layer)
            position += 1

    def _meets_other_stages(self, node: Node) -> bool:
        if node.definition.kind != "collective":
            return False
        size, stride = node.attrs["group_size"], node.attrs["group_stride"]
        return not set(group_of(self.ranks[0], size, stride)) <= self.peers

    def _block(self, block: Block) -> None:
        body = self.graph.nodes[block.start : block.stop]
        forward = body[0].during == "forward"
        for repetition in range(block.count):
            layer = repetition if forward else block.count - 1 - repetition
            arriving = {}
            for carry in block.carries:
                source = carry.initial if repetition == 0 else carry.result
                made = layer if repetition == 0 else self.last[carry.result]
                arriving[carry.argument] = {
                    r: self.current[source][r]
                    if source in self.current
                    else self._stored(source, None if repetition == 0 else block, r, made)
                    for r in self.ranks
                }
            self.current = arriving
            for value, arrays in arriving.items():
                kept = self.values.setdefault(value, {r: [None] * block.count for r in self.ranks})
                for rank, array in arrays.items():
                    kept[rank][layer] = array
            for node in body:
                self._node(node, layer)
        self.current = {}

    def _stored(self, value: Value, reader: Block | None, rank: int, layer: int) -> Array:
        """The array of the reader's own layer, or what a block that is over left behind."""
        layers = self.values[value][rank]
        if len(layers) == 1:
            layer = 0
        elif value in self.last:
            producer = self.graph.block_of.get(self.graph.producers[value])
            if producer is not None and (reader is None or producer not in self.partner[reader]):
                layer = self.last[value]
        found = layers[layer]
        assert found is not None, value
        return found

    def _read(self, value: Value, node: Node, rank: int, layer: int) -> Array:
        if value in self.current:
            return self.current[value][rank]
        if node.count > 1 and node not in self.graph.block_of:
            # The update of every layer's weight.
            layers = self.values[value][rank]
            found = layers[layer if len(layers) > 1 else 0]
            assert found is not None, value
            return found
        return self._stored(value, self.graph.block_of.get(node), rank, layer)

    def _node(self, node: Node, layer: int) -> None:
        operands = {r: [self._read(v, node, r, layer) for v in node.inputs] for r in self.ranks}
        if node.definition.kind == "collective":
            results = self.wire.collective(node, operands)
        else:
            results = {r: self._compute(node, r, operands[r]) for r in self.ranks}
        self._keep(node, results, layer)

    def _keep(self, node: Node, results: Mapping[int, Sequence[Array]], layer: int) -> None:
        for i, value in enumerate(node.outputs):
            kept = self.values.setdefault(value, {r: [None] * value.count for r in self.ranks})
            self.last[value] = layer
            for rank, found in results.items():
                array = np.asarray(found[i])
                assert array.shape == value.type.shape, (str(node), array.shape)
                kept[rank][layer if value.count > 1 else 0] = array

    def _compute(self, node: Node, rank: int, operands: Sequence[Array]) -> Sequence[Array]:
        if node.op in ("shard", "own_part"):
            place = _place(node, "split")
            return [place.cut(operands[0], place.index_of(rank))]
        own = node
        if "by_rank" in node.attrs:
            own = replace(node, attrs=attrs_of_rank(node.attrs, rank))
        with np.errstate(all="ignore"):
            if node.op in _MEANINGS:
                return _MEANINGS[node.op](own, operands)
            return run_node(own, operands)


def original_name(value: Value) -> str:
    """The name of a value before it was stored in parts."""
    return value.name.removesuffix(".shard").removesuffix(".whole")


def own_part(value: Value, whole: Array, rank: int) -> Array:
    """A rank's part of an array."""
    for shard in value.shards:
        whole = shard.cut(whole, shard.index_of(rank))
    assert whole.shape == value.type.shape, value
    return whole


class PartitionedRun:
    """Runs all ranks of a partitioned step.

    Args:
        whole: the graph before partitioning.
        parts: what partitioning made of it.
        given: arrays of every input of the whole graph, one per layer.
        wire: how ranks exchange arrays.
        only: the ranks of this process; all if None.
    """

    def __init__(
        self,
        whole: Graph,
        parts: PartitionedGraph,
        given: Mapping[Value, Sequence[Array]],
        wire: Wire | None = None,
        only: Sequence[int] | None = None,
    ) -> None:
        self.whole = whole
        self.parts = parts
        count = len(parts.stages)
        self.by_name = {v.name: v for v in given}
        self.given = given
        self.offsets = self._offsets()
        ranks = range(parts.devices) if only is None else only
        self.runs = [
            StageRun(
                stage.graph,
                [r for r in ranks if r // parts.stage_stride % count == i],
                lambda value, i=i: self._layers(value, i),
                wire or InProcess(),
                [r for r in range(parts.devices) if r // parts.stage_stride % count == i],
            )
            for i, stage in enumerate(parts.stages)
        ]
        self._run()

    def _offsets(self) -> list[dict[str, int]]:
        """The first layer of every stage, by the name of the weight."""
        found: list[dict[str, int]] = []
        held: dict[str, int] = {}
        for stage in self.parts.stages:
            found.append(dict(held))
            for value in stage.graph.inputs:
                held[value.name] = held.get(value.name, 0) + value.count
        return found

    def _layers(self, value: Value, stage: int) -> Sequence[Array]:
        layers = self.given[self.by_name[original_name(value)]]
        if len(layers) == 1:
            return layers
        first = self.offsets[stage].get(value.name, 0)
        return layers[first : first + value.count]

    def _run(self) -> None:
        working = {i: run.run() for i, run in enumerate(self.runs)}
        waiting = {i: next(w, None) for i, w in working.items()}
        while any(waiting.values()):
            moved = False
            for i, name in waiting.items():
                results = self._arriving(i, name) if name is not None else None
                if results is not None:
                    moved = True
                    try:
                        waiting[i] = working[i].send(results)
                    except StopIteration:
                        waiting[i] = None
            assert moved, f"stages wait for {waiting}"

    def _arriving(self, stage: int, name: str) -> dict[int, Any] | None:
        """What a stage waits for, if it is there."""
        run = self.runs[stage]
        node = next(n for n in run.graph.nodes if n.name == name)
        if node.op == "recv":
            value = name.removesuffix(".recv")
            source = self._source(stage, node, value)
            sent = self.runs[source].sent.get(value)
            shift = (stage - source) * self.parts.stage_stride
            return None if sent is None else {r + shift: a for r, a in sent.items()}
        posted = {r: a for other in self.runs for r, a in other.posted.get(name, {}).items()}
        size, stride = node.attrs["group_size"], node.attrs["group_stride"]
        if not all(m in posted for r in run.ranks for m in group_of(r, size, stride)):
            return None
        results = InProcess().collective(node, posted)
        return {r: results[r] for r in run.ranks}

    def _source(self, reader: int, receives: Node, name: str) -> int:
        """The stage nearest to the reader that sends the value, upstream in its pass if there is one."""
        stages: tuple[Stage, ...] = self.parts.stages
        forward = receives.during == "forward"
        senders = [
            i
            for i, stage in enumerate(stages)
            if i != reader and any(n.name == f"{name}.send" for n in stage.graph.nodes)
        ]
        upstream = [i for i in senders if (i < reader) == forward]
        return min(upstream or senders, key=lambda i: abs(i - reader))

    # --- what came out --------------------------------------------------------------------------------

    def joined(self, stage: int, value: Value, layer: int, shape: Sequence[int]) -> list[Array]:
        """What each rank of the stage knows of a value once its parts are joined.

        Args:
            stage: of the value.
            value: of the stage's graph.
            layer: index into its layers.
            shape: of the whole value.
        """
        run = self.runs[stage]
        known = {r: run.values[value][r][layer] for r in run.ranks}
        shapes = [tuple(shape)]
        for shard in value.shards:
            sample = np.zeros(shapes[-1], dtype=np.bool_)
            shapes.append(shard.cut(sample, 0).shape)
        for shard, before in zip(reversed(value.shards), reversed(shapes[:-1]), strict=True):
            known = {
                r: shard.join([known[m] for m in group_of(r, shard.parts, shard.stride)], before)
                for r in known
            }
        return list(known.values())

    def check(
        self,
        expected: StageRun,
        along: Mapping[str, tuple[int, int]] | None = None,
        tolerance: float = 1e-6,
    ) -> int:
        """Compares every float that one device computes too; returns how many values were compared.

        Integers number rows and experts, which may be each device's own.

        Results of the graph must be complete on every rank; any other value may be a term along some mesh
        axes.

        Args:
            expected: the whole graph, run on one device.
            along: further groups (size, stride) along which values may be terms: what the graph reduces
                over is known.
            tolerance: relative and absolute.
        """
        axes = {
            *(along or {}).values(),
        } | {
            (n.attrs["group_size"], n.attrs["group_stride"])
            for run in self.runs
            for n in run.graph.nodes
            if n.op in ("all_reduce", "reduce_scatter") and n.attrs["axis"] != "pp"
        }
        names = {v.name: v for v in expected.values if v.type.dtype.is_float}
        results = {v for v in self.whole.outputs if v.type.elements > 1}
        several = len(self.runs) > 1
        own = {v for run in self.runs for v in _sums_of_copies(run.graph)} if several else set()
        known = [
            (layer, stage, value, names[original_name(value)])
            for stage, run in enumerate(self.runs)
            for value in run.values
            if original_name(value) in names and value not in own
            for layer in range(value.count)
        ]
        sorts = any(node.op == "sort" for node in self.whole.nodes)
        # Layer by layer, so that the first mistake is found first.
        for layer, stage, value, whole in sorted(known, key=lambda found: found[0]):
            run = self.runs[stage]
            right = expected.values[whole][0][self._first_layer(stage, value, whole) + layer]
            assert right is not None
            found = self.joined(stage, value, layer, right.shape)
            complete = whole in results and value in run.graph.outputs
            ok = _agrees(found, right, () if complete else axes, run.ranks, tolerance)
            if not ok and sorts and not complete:
                # Each device sorts its own tokens: the same rows in another order.
                ok = _agrees(found, right, axes, run.ranks, tolerance, reordered=True)
            assert ok, f"stage {stage}: {value}, layer {layer}, is not what one device computes"
        return len(known)

    def _first_layer(self, stage: int, value: Value, whole: Value) -> int:
        if whole.count == 1:
            return 0
        name = original_name(value)
        # A stage's value stands for the layers that follow those of the stages before it.
        before = [{original_name(v): v.count for v in run.values} for run in self.runs[:stage]]
        return sum(counts.get(name, 0) for counts in before)


def _sums_of_copies(graph: Graph) -> set[Value]:
    """What has been summed up so far over the copies of a shared weight, beginning with zero.

    Each stage of a pipeline does so for its own copies, before they add up their sums.
    """
    found: set[Value] = set()
    for block in graph.blocks:
        for carry in block.carries:
            producer = graph.producers.get(carry.initial)
            if producer is not None and producer.op == "fill":
                found.add(carry.argument)
    for node in graph.nodes:
        if node.op == "add" and found.intersection(node.inputs):
            found.update(node.outputs)
    return found


def _agrees(
    found: Sequence[Array],
    right: Array,
    axes: Collection[tuple[int, int]],
    ranks: Sequence[int],
    tolerance: float,
    reordered: bool = False,
) -> bool:
    """Whether every rank knows the right array, or its sum or maximum over some mesh axes is right."""
    if reordered:
        right = np.sort(right.ravel())

    def close(arrays: Sequence[Array]) -> bool:
        if reordered:
            arrays = [np.sort(a.ravel()) for a in arrays]
        return all(
            a.shape == right.shape
            and np.allclose(a, right, rtol=tolerance, atol=tolerance, equal_nan=True)
            for a in arrays
        )

    if close(found):
        return True
    base = min(ranks)
    for count in range(1, len(axes) + 1):
        for chosen in combinations(sorted(axes), count):
            for term in _TERMS.values():
                arrays = dict(zip(ranks, found, strict=True))
                for size, stride in chosen:
                    arrays = {
                        r: reduce(
                            term, [arrays[m + base] for m in group_of(r - base, size, stride)]
                        )
                        for r in arrays
                    }
                if close(list(arrays.values())):
                    return True
    return False


def one_device(graph: Graph, given: Mapping[Value, Sequence[Array]]) -> StageRun:
    """The whole graph, run on one device."""
    run = StageRun(graph, [0], lambda value: given[value], InProcess())
    for _ in run.run():
        raise ValueError("a whole graph receives nothing")
    return run


def numbers(graph: Graph, *, rows: int = 16, seed: int = 5) -> dict[Value, list[Array]]:
    """Random numbers for every input of a graph; the content of constants where it is known.

    Args:
        graph: folded or not; a value of count n gets n arrays.
        rows: integers are below this, so that they are rows of every table.
        seed: of the random numbers.
    """
    rng = np.random.default_rng(seed)

    def array(value: Value) -> Array:
        shape, kind = value.type.shape, value.type.dtype.kind
        if value.data is not None:
            return np.asarray(value.data).reshape(shape)
        if kind == "bool":
            return np.ones(shape, dtype=np.bool_)
        if not value.type.dtype.is_float:
            return rng.integers(0, rows, size=shape)
        if value.kind == "state":
            return np.abs(rng.normal(size=shape)) * 0.1
        return rng.normal(size=shape) * (0.3 if value.kind == "parameter" else 1.0)

    return {v: [array(v) for _ in range(v.count)] for v in graph.inputs}
