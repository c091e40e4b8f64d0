"""Turns sources of images into batches.

Steps: sources -> prepare (hash, decode, cache) -> manifest -> order -> pipeline.
"""
