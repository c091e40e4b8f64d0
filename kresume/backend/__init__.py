"""The differences between TensorFlow and JAX: choosing one, its live arrays, what equal bytes depend on."""
