"""The engine that scores in NVIDIA's Triton: its process, its models, and who heals them."""
