"""What a user's own `model.fit` script imports: a dataset of images and a callback that continues it exactly."""
