"""Which nodes become one kernel under a fusing compiler.

Elementwise operators, norms and reductions join the kernel of a producer whose elements they walk over;
elementwise operators also join a product as its epilogue. This is what TorchInductor, XLA and TensorRT
have in common. What is stored in few bits stays so in memory: the kernel that computes with it widens it. A
kernel never spans two phases, two blocks or a collective, and merging never closes a
cycle.
"""

from __future__ import annotations

from graph_ir.graph import Graph, Node, Value

_JOINS = ("elementwise", "reduction", "normalization")


def fusion_groups(graph: Graph) -> list[list[Node]]:
    """Groups of nodes that run as one kernel; every node is in exactly one, in graph order."""
    return _Fuser(graph).run()


class _Fuser:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.position = {node: i for i, node in enumerate(graph.nodes)}
        self.group_of: dict[Node, list[Node]] = {}

    def run(self) -> list[list[Node]]:
        groups: list[list[Node]] = []
        for node in self.graph.nodes:
            host = self._host(node)
            if host is None:
                host = []
                groups.append(host)
            for widened in self._widened_for(node, host):
                host.extend(widened)
                self.group_of.update((member, host) for member in widened)
                widened.clear()
            host.append(node)
            self.group_of[node] = host
        for group in groups:
            group.sort(key=self.position.__getitem__)
        return [group for group in groups if group]

    def _widened_for(self, node: Node, host: list[Node]) -> list[list[Node]]:
        """Kernels that only dequantise an operand of the node, for it alone."""
        if node.definition.kind not in _JOINS:
            return []
        found = []
        makers = (self.graph.producers.get(v) for v in dict.fromkeys(node.inputs))
        for producer in dict.fromkeys(p for p in makers if p is not None):
            first, *views = group = self.group_of[producer]
            if (
                group is not host
                and first.op == "dequantize"
                and all(n.definition.is_view(n) for n in views)
                and all(len(self.graph.users.get(v, ())) == 1 for n in group for v in n.outputs)
                and first.phase == node.phase
                and self.graph.block_of.get(first) is self.graph.block_of.get(node)
                and not (host and self._closes_cycle({producer}, host))
            ):
                found.append(group)
        return found

    def _stays_narrow(self, node: Node) -> bool:
        """Whether a dequantised value would be written wide if the kernel that made it widened it too."""
        stored, wide = node.inputs[0], node.outputs[0]
        if node.op != "dequantize" or stored.type.dtype.bits >= wide.type.dtype.bits:
            return False
        readers = [u.definition.kind for u in self._readers(wide)]
        return len(self.graph.users.get(stored, ())) > 1 or readers.count("elementwise") < len(
            readers
        )

    def _readers(self, value: Value) -> list[Node]:
        """The nodes that read a value, perhaps through views."""
        found = []
        for user in self.graph.users.get(value, ()):
            through = user.outputs if user.definition.is_view(user) else ()
            found += [n for v in through for n in self._readers(v)] or [user]
        return found

    def _host(self, node: Node) -> list[Node] | None:
        if node.definition.kind not in _JOINS and not node.definition.is_view(node):
            return None
        if node.inputs and self._stays_narrow(node):
            return None
        producers = {p for v in node.inputs if (p := self.graph.producers.get(v)) is not None}
        for producer in sorted(producers, key=lambda p: -self.position[p]):
            group = self.group_of[producer]
            if self._compatible(node, producer, group) and not self._closes_cycle(producers, group):
                return group
        return None

    def _compatible(self, node: Node, producer: Node, group: list[Node]) -> bool:
        if producer.phase != node.phase:
            return False
        if self.graph.block_of.get(producer) is not self.graph.block_of.get(node):
            return False
        product = group[0].definition.kind == "contraction"
        if product and node.definition.kind != "elementwise":
            # A norm needs whole rows, which a product's tiles do not hold.
            return False
        made = max(v.type.elements for v in producer.outputs)
        # An epilogue applies its tables (a weight's scales by block) while the product is computed.
        epilogue = product and node.attrs.get("epilogue")
        walked = max(v.type.elements for v in (*(() if epilogue else node.inputs), *node.outputs))
        same_elements = made == walked
        if producer.definition.kind in _JOINS:
            # After a reduction, what broadcasts its result back walks over the reduced elements again.
            read = max((v.type.elements for v in producer.inputs), default=made)
            return same_elements or (read == walked and not product)
        if producer.definition.is_view(producer):
            return same_elements and any(n.definition.kind in _JOINS for n in group)
        # An epilogue: elementwise work on what a product just made, for that reader alone.
        only = all(len(self.graph.users.get(v, ())) == 1 for v in producer.outputs[:1])
        elementwise = node.definition.kind == "elementwise"
        return product and elementwise and same_elements and only

    def _closes_cycle(self, producers: set[Node], group: list[Node]) -> bool:
        """Whether another operand needs the group's result through nodes outside the group."""
        first = self.position[group[0]]
        stack = [p for p in producers if self.group_of[p] is not group]
        seen: set[int] = set()
        while stack:
            node = stack.pop()
            other = self.group_of[node]
            if id(other) in seen:
                continue
            seen.add(id(other))
            for member in other:
                for value in member.inputs:
                    producer = self.graph.producers.get(value)
                    if producer is None or self.position[producer] < first:
                        continue
                    if self.group_of[producer] is group:
                        return True
                    stack.append(producer)
        return False
