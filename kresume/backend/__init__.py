"""Holds the differences between TensorFlow and JAX: selection, live arrays, fingerprint."""
