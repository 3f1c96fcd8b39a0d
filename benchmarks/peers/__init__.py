"""Other people's software as contenders, each in an environment of its own under .tools/peers.

`benchmarks/peers/setup.sh NAME` makes an environment. A peer program runs there, imports nothing of
ours but `benchmarks.child_server` and `history_batches`, and does what a `benchmarks.child` asks.
"""
