"""Fetches what is in a bucket to local folders, and copies behind what a training writes there."""
