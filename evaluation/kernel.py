"""How far apart are two clouds of points, with no assumption about their shape?

The squared maximum mean discrepancy with a cubic kernel.  Its estimate has no bias: equal distributions give 0 on
average (so single values may be negative) at any N.  On Inception features this is the "KID" of Binkowski et al. 2018.
"""

import numpy as np
import torch


def cubic(x, y):
    """k(x, y) = (x·y / d + 1)³ for all pairs: (m, d), (n, d) -> (m, n)."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def mmd2(x, y):
    """Unbiased estimate of the squared distance of the distributions of x (m, d) and y (n, d), m, n >= 2; a float."""
    x, y = x.double(), y.double()
    m, n = len(x), len(y)
    xx, yy = cubic(x, x), cubic(y, y)
    # Σ_{i≠j} k(x_i, x_j) / m(m-1): a point's similarity to itself would be the bias
    within = (xx.sum() - xx.trace()) / (m * (m - 1)) + (yy.sum() - yy.trace()) / (n * (n - 1))
    return (within - 2 * cubic(x, y).mean()).item()


def kernel_distance(x, y, subsets=100, size=1000):
    """(mean, std, size) of `mmd2` over random subsets of `size` of x and of y.

    Of small sets it is half of the smaller one: subsets that are the whole set would not deviate.
    """
    size = max(2, min(size, len(x) // 2, len(y) // 2))
    rng = np.random.default_rng(0)

    def draw(z):
        return z[torch.from_numpy(rng.choice(len(z), size, replace=False))]

    values = np.array([mmd2(draw(x), draw(y)) for _ in range(subsets)])
    return float(values.mean()), float(values.std()), size
