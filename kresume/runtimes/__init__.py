"""Runs an exported model by its own runtime, in a process of its own, and reads what it says of itself."""
