"""A gate for CI: budgets from a TOML file, what breaks them, and the forms that CI systems read."""

from reports.gate.budget import Budget, Part, Target, load_budget
from reports.gate.check import Finding, TargetResult, check_target

__all__ = ["Budget", "Finding", "Part", "Target", "TargetResult", "check_target", "load_budget"]
