"""Reports of a costed graph: the data, its JSON form, and the forms that people read.

`build_report` takes priced nodes and makes a `Report`, whose totals are sums of its rows.
"""

from reports.build import CostedNode, StepTimes, build_report
from reports.conclusions import lift
from reports.figures import (
    Instance,
    MemoryProfile,
    MemoryUse,
    OpRow,
    PipelineRank,
    TimelineEvent,
    Totals,
)
from reports.report import Report
from reports.setting import Ceiling, Coverage, HardwareInfo, ModelInfo, StrategyInfo, TensorInfo

__all__ = [
    "Ceiling",
    "CostedNode",
    "Coverage",
    "HardwareInfo",
    "Instance",
    "MemoryProfile",
    "MemoryUse",
    "ModelInfo",
    "OpRow",
    "PipelineRank",
    "Report",
    "StepTimes",
    "StrategyInfo",
    "TensorInfo",
    "TimelineEvent",
    "Totals",
    "build_report",
    "lift",
]
