"""Resumes a user's own `model.fit` exactly: datasets of images and a backup callback."""
