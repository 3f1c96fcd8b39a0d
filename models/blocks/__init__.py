"""Layers that models share, one concept a file."""
