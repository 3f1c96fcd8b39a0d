"""A client of servers of bundles: the standard library and nothing of TensorFlow."""
