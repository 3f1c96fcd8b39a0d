"""What scoring does differently for models that read different things."""
