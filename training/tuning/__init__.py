"""Searches options of training: a space in YAML, trials that are runs, Optuna choosing them."""
