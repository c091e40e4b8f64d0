"""How good a model is, on old and new images, before and after."""
