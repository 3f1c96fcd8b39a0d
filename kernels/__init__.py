"""Operations of our own in C++, and the one place that chooses between them and TensorFlow's."""
