"""Computes 95 % confidence intervals of scores, which are measured on a limited number of images.

    low, high = wilson(right=93, images=100)

Shares of images (accuracy, recall, precision) have Wilson's interval (1927): it needs no draws, and unlike the bootstrap
it is no point at 0 and 100 %, where every resample has the same score.
"""

from __future__ import annotations

from statistics import NormalDist
from typing import Any

import numpy as np

LEVEL = 0.95
Z = NormalDist().inv_cdf((1 + LEVEL) / 2)
"""Half the width of an interval, in standard errors."""


def wilson(right: Any, images: Any) -> tuple[Any, Any]:
    """Returns Wilson's interval of shares, elementwise.

    Args:
        right: counts of right images.
        images: counts of images; 0 gives the whole range from 0 to 1.

    Returns:
        `(low, high)`, each of the shape of the arguments.
    """
    right, images = np.asarray(right, np.float64), np.asarray(images, np.float64)
    count = np.maximum(images, 1)
    share = right / count
    centre = (share + Z**2 / (2 * count)) / (1 + Z**2 / count)
    half = Z / (1 + Z**2 / count) * np.sqrt(share * (1 - share) / count + Z**2 / (4 * count**2))
    low = np.where(right > 0, centre - half, 0.0)  # exactly 0 and 1 at the ends
    high = np.where(right < images, centre + half, 1.0)
    return low, np.where(images > 0, high, 1.0)
