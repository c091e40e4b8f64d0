"""Runs one process on one run, from its newest snapshot to its end."""
