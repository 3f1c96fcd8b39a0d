"""Training: configuration, process set-up, optimizers, metrics, checkpoints, logs; no model's name.

Modules are imported by their own names (`from lookback.training.config import RunConfig`), so that
a command line can answer `--help` without loading TensorFlow.
"""
