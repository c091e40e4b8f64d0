"""Evaluates models on old and new images, before and after training."""
