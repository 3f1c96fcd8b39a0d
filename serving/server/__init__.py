"""A server of bundles over HTTP: the protocol of Triton, in one process without Triton."""
