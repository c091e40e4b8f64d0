"""Reads checkpoints: one reader per format, each of which returns a `TrainState`.

Start at `read.py`.
"""
