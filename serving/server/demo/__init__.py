"""A page to look at: users of a dataset or a store, what a model attends to, its ranking."""
