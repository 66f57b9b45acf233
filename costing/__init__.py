"""Prices an operator graph on a piece of hardware: time, bound, memory, timeline."""
