"""Requests of one row of numbers and categorical values."""
