"""Frozen values that every wing speaks: what a checkpoint means, what a model takes, what a run decided."""
