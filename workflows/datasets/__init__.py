"""The datasets, a file each: how raw files are found and read."""
