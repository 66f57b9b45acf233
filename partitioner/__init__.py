"""Splits an operator graph over a mesh of devices."""
