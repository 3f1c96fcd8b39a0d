"""Interactions: pairs of user and item, negatives drawn, users ranked."""
