"""Operator records, one module per family. Every module registers its records when imported."""
