"""The pictures and labels on which every writer predicts and trains: formulas, so that no generator has to stay as it is."""

import numpy as np

IMAGES = (2.0 * np.sin(0.7 * np.arange(16 * 12 * 12 * 3) ** 1.1)).astype(np.float32).reshape(16, 12, 12, 3)
LABELS = (np.arange(16) ** 2 // 3 % 3).astype(np.int64)
