"""Holds frozen values that every folder uses: checkpoint state, model card, run record."""
