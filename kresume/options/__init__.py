"""Holds the options of a training: their table, their defaults, and how users give them."""
