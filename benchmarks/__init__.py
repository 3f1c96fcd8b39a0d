"""Benchmarks: each answers one question. `python -m benchmarks` lists them.

A benchmark module has `QUESTION` (a string literal, so that listing need not import the module),
`add_arguments(parser)` and `run(args) -> Report`; `args.quick` asks for an answer within 60 s.
TensorFlow and the like are imported by `run`, so that `--help` stays fast.
"""

from __future__ import annotations

BENCHMARKS = {
    "loader": "benchmarks.loader",
}
