"""Users by the million: scores of their candidates, or the best items for each, as tables."""
