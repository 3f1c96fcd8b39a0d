"""From events to one row a user."""
