"""The pictures and labels on which every writer predicts and trains: formulas, so that no generator has to stay as it is."""

import numpy as np

IMAGES = (2.0 * np.sin(0.7 * np.arange(16 * 12 * 12 * 3) ** 1.1)).astype(np.float32).reshape(16, 12, 12, 3)
LABELS = (np.arange(16) ** 2 // 3 % 3).astype(np.int64)


def numbers(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers between 0.1 and 0.9 that follow from a name and a shape; counts (of adapted layers) are whole."""
    if not shape:
        return np.asarray(7 if "count" in name else 0.7)
    index = np.arange(int(np.prod(shape)), dtype=np.float64).reshape(shape)
    return (0.5 + 0.4 * np.sin(1.7 * index**1.3 + sum(map(ord, name)) % 17)).astype(np.float32)
