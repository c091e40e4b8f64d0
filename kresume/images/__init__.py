"""Turns sources of images into batches.

Steps: sources (names) -> prepare (hash, decode, cache) -> merging (manifest) -> order -> pipeline. `collect` does the
first two for every caller.
"""
