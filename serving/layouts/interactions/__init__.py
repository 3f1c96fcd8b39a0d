"""Requests of a user, answered with a ranking of items."""
