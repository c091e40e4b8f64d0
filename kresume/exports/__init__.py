"""A trained model in the form in which it is used elsewhere: a file per format, each export verified. Start at `export.py`."""
