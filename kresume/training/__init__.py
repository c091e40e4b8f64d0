"""How a run is trained. `resume.py` is the story, top to bottom; start reading there."""
