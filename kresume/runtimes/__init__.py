"""Runs exported models with their own runtimes in separate processes, and reads their signatures."""
