"""Tabular data: rows of numbers and ids."""
