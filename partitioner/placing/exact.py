"""The shortest schedule of a segment, as an integer program solved by HiGHS.

Unknowns: on which device a piece lies, when each of its passes starts, which flows cross devices, and, of
two pieces that could run at the same time, which goes first when they share a device. The objective is the
sum of both passes' lengths (the program of DLPlacer: Pal et al. 2019, arXiv 1907.13257, with our times).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

from partitioner.placing.schedule import Schedule, Segment, Work


@dataclass(frozen=True)
class Solved:
    """What the solver found."""

    schedule: Schedule | None
    """The best one, None if it found none that is better than what it was given."""
    bound_s: float
    """No schedule of the segment is shorter."""


def available() -> bool:
    """Whether the solver is installed."""
    try:
        import highspy  # noqa: F401
    except ImportError:
        return False
    return True


def solve(segment: Segment, devices: int, upper_s: float, limit_s: float) -> Solved:
    """Looks for a shorter schedule than `upper_s`.

    Args:
        segment: what to place.
        devices: how many there are.
        upper_s: length of a known schedule.
        limit_s: seconds after which the best so far is taken.
    """
    import highspy

    model: Any = highspy.Highs()
    model.setOptionValue("output_flag", False)
    model.setOptionValue("time_limit", limit_s)
    model.setOptionValue("mip_rel_gap", 1e-6)
    model.setOptionValue("threads", 1)
    # Times in units of the known schedule: the solver's tolerances are absolute.
    program = _Program(model, segment, devices, upper_s)
    program.build()
    model.minimize(program.objective)
    info = model.getInfo()
    bound_s = max(0.0, float(info.mip_dual_bound)) * upper_s
    status = model.getModelStatus()
    if status == highspy.HighsModelStatus.kInfeasible:
        # Nothing is shorter than what is known.
        return Solved(None, upper_s)
    if info.primal_solution_status != highspy.SolutionStatus.kSolutionStatusFeasible:
        return Solved(None, min(bound_s, upper_s))
    values = model.getSolution().col_value
    device = [
        max(range(devices), key=lambda d: values[program.on[i][d].index])
        for i in range(segment.size)
    ]
    wished = [[values[start.index] * upper_s for start in starts] for starts in program.starts]
    return Solved(segment.run(device, wished), min(bound_s, upper_s))


class _Program:
    def __init__(self, model: Any, segment: Segment, devices: int, upper_s: float) -> None:
        self.model = model
        self.segment = segment
        self.devices = devices
        self.upper_s = upper_s
        self.objective: Any = 0
        self.starts: list[list[Any]] = []
        """Of each pass: when its pieces start."""

    def build(self) -> None:
        model, segment = self.model, self.segment
        self.on = [[model.addBinary() for _ in range(self.devices)] for _ in range(segment.size)]
        for places in self.on:
            model.addConstr(sum(places[1:], places[0]) == 1)
        # Devices are alike: the first piece's is called 0, and others in the order of their first use.
        model.addConstr(self.on[0][0] == 1)
        crosses = {}
        for a, b in {(min(a, b), max(a, b)) for a, b, _ in segment.passes[0].edges}:
            crosses[a, b] = model.addBinary()
            for d in range(self.devices):
                model.addConstr(crosses[a, b] >= self.on[a][d] - self.on[b][d])
        same: dict[tuple[int, int], Any] = {}
        for work in segment.passes:
            length = model.addVariable(0, 1)
            self.objective = self.objective + length
            self._pass(work, length, crosses, same)
        model.addConstr(self.objective <= 1)

    def _pass(
        self,
        work: Work,
        length: Any,
        crosses: dict[tuple[int, int], Any],
        same: dict[tuple[int, int], Any],
    ) -> None:
        model = self.model
        times = [t / self.upper_s for t in work.seconds]
        starts = [model.addVariable(0, 1) for _ in times]
        self.starts.append(starts)
        ahead = _reachable(work)
        for start, time in zip(starts, times, strict=True):
            model.addConstr(start + time <= length)
        for d in range(self.devices):
            load = sum((t * self.on[i][d] for i, t in enumerate(times) if t > 0), start=0 * length)
            model.addConstr(load <= length)
        for a, b, s in work.edges:
            crossing = crosses[min(a, b), max(a, b)]
            model.addConstr(starts[b] >= starts[a] + times[a] + (s / self.upper_s) * crossing)
        for i, j in itertools.combinations(range(len(times)), 2):
            if j in ahead[i] or i in ahead[j] or not times[i] or not times[j]:
                continue
            if (i, j) not in same:
                same[i, j] = model.addVariable(0, 1)
                for d in range(self.devices):
                    model.addConstr(same[i, j] >= self.on[i][d] + self.on[j][d] - 1)
            first = model.addBinary()
            together = same[i, j]
            # No schedule of interest is longer than 1.
            model.addConstr(
                starts[j] >= starts[i] + times[i] - (1 + times[i]) * (2 - first - together)
            )
            model.addConstr(
                starts[i] >= starts[j] + times[j] - (1 + times[j]) * (1 + first - together)
            )


def _reachable(work: Work) -> list[set[int]]:
    """The pieces that come after each one."""
    found: list[set[int]] = [set() for _ in work.seconds]
    for i in reversed(work.order):
        for j in work.after[i]:
            found[i] |= {j} | found[j]
    return found
