"""Builds, restores and saves models, and reads their losses and outputs."""
