"""Embedding tables: ids in, vectors out. Knows no model and no training loop.

Models see `EmbeddingCollection` only; where a table's rows live and how they are reached is its
backend's business.
"""
