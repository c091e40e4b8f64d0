"""Defines tasks: what a model is trained to tell about an image, and how its answers are judged."""
