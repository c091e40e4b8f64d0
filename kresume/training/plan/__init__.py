"""Decides what a run will do before its first step; writes nothing."""
