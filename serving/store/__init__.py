"""Histories of users, kept for serving: loaded from a dataset, grown by events, read by users."""
