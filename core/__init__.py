"""What all else stands on: errors, atomic files, options, random numbers, sizes, processes."""
