"""Patterns: what several operators in a row mean together, in one canonical operator.

A pattern is recognised by what is computed, never by names, so it does not matter which frontend wrote the
graph. One file per family; a new pattern is a term (`term`) and a line that says what it equals.
"""
