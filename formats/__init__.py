"""What lies on disk: each format has one owner, which reads it and writes it."""
