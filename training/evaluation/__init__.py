"""How good a model is: exact metrics of what was scored."""
