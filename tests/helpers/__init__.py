"""Holds what several tests share: runs, pictures, golden models, paths."""
