"""Lookback: recommenders that look back over long user histories, trained, evaluated and served."""

__version__ = "0.1.0"
