"""Defines the commands: each parses, makes one library call and prints. `cli.py` lists them."""
