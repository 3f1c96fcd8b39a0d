"""Baselines: plain versions of our models, to compare speed with and to test against."""
