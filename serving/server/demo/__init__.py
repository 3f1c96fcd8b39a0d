"""A page to look at: users of a dataset, what a model attends to in a history, its ranking."""
