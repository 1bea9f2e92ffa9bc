"""What do all walks from noise to a picture have in common?

The stages they yield, the noise levels they visit, and where each image's randomness comes from.
Read next: samplers.py.
"""

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Step(NamedTuple):
    """One stage of the walk: t is the level of x (0 means clean); x0 is the network's guess that led here."""

    t: int
    x: Tensor
    x0: Tensor


def spaced(T, n):
    """n distinct levels of 1..T, strictly falling, the first T and as even as whole numbers can be (1 <= n <= T).

    The last step goes from the smallest level to 0.  DDIM Sec. 4.2; "trailing" in Lin et al. 2023, Table 2.
    """
    if not 1 <= n <= T:
        raise ValueError(f"the number of steps must be from 1 to T = {T}, not {n}")
    return [T * i // n for i in range(n, 0, -1)]  # T·i/n grow by at least 1: all distinct


def adjacent(schedule, timesteps=None):
    """The pairs (t, s) that a sampler walks over, the last one ending in s = 0.  Default: every level."""
    levels = [*(range(schedule.T, 0, -1) if timesteps is None else timesteps), 0]
    if len(levels) == 1 or levels[0] > schedule.T or any(t <= s for t, s in pairwise(levels)):
        raise ValueError(f"timesteps must fall strictly and lie in 1..{schedule.T}: {levels[:-1]}")
    return list(pairwise(levels))


def image_noise(seed, numbers):
    """A `noise_like` in which image i of the batch has its own generator, seeded by (seed, numbers[i]).

    So picture number i is the same in any batch.  NumPy's generator, because torch's on the CPU keeps only 32 bits of
    a seed; drawn on the CPU in float32, so that every device gets the same noise.
    """
    generators = [np.random.default_rng((seed, number)) for number in numbers]

    def noise_like(x):
        draws = np.stack([g.standard_normal(x.shape[1:], dtype=np.float32) for g in generators])
        return torch.from_numpy(draws).to(device=x.device, dtype=x.dtype)

    return noise_like
