"""Holds the version, in a module of its own so that it can be imported from below."""

__version__ = "0.1.0"
