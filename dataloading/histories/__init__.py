"""Histories: batches of (user, position), or of samples materialised elsewhere."""
