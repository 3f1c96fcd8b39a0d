"""Requests of a user's history and candidates."""
