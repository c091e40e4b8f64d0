"""Is imported by `kinds_of_values`, as the helper module of a script."""

ALPHA, IMPORTED, UNREAD, COUNT = 0.65, 0.85, 1, 0
SETTINGS = {"depth": 9, "unread": 1}


def scaled(value):
    global COUNT  # noqa: PLW0603
    COUNT += 1
    return value * 1.0
