"""Scripts that run an exported model with only its own runtime.

None imports kresume; each runs in a fresh process (`process.py`).
"""
