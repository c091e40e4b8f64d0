"""Trains runs. Start reading at `resume.py`: it calls everything else, in order."""
