"""What do all walks from noise to a picture have in common?

The stages they yield, the noise levels they visit, and where each image's randomness comes from: the words that
samplers.py is written in, to be read beside it.
"""

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from diffusion.process import column

SIGMA_MAX = 80.0  # where EDM's levels begin, in units of σ = √((1-ᾱ)/ᾱ)


class Step(NamedTuple):
    """One stage of the walk: t is the level of x (0 means clean), x0 the guess that led here (in `ode`: made here)."""

    t: int
    x: Tensor
    x0: Tensor


def spaced(T, n):
    """n distinct levels of 1..T, strictly falling, the first T and as even as whole numbers can be (1 <= n <= T).

    The last step goes from the smallest level to 0.  DDIM Sec. 4.2; "trailing" in Lin et al. 2023, Table 2.
    Raises ValueError for any other n.
    """
    if not 1 <= n <= T:
        raise ValueError(f"the number of steps must be from 1 to T = {T}, not {n}")
    return [T * i // n for i in range(n, 0, -1)]  # T·i/n grow by at least 1: all distinct


def visible(schedule):
    """SNR of every level, (T+1,), but no lower than that of SIGMA_MAX: what is hidden deeper is not worth a step.

    Up there x̂_0 hardly moves, yet the cosine schedule has a third of its log-SNR in its last few levels, and at zero
    terminal SNR there is no end to it.  Levels spread by this table cross all of that in their first step.
    """
    return schedule.snr.clamp(min=SIGMA_MAX**-2)


def spaced_logsnr(schedule, n, top=None):
    """n distinct falling levels from `top` (default T) to 1, as even in log-SNR, DPM-Solver++'s time, as can be."""
    return _even(visible(schedule).log(), n, top)


def spaced_rho(schedule, n, rho=7.0, top=None):
    """n distinct falling levels from `top` (default T) to 1, even in σ^(1/ρ), σ = 1/√SNR.

    The larger ρ, the more of them near the data: rho = 1 is even in σ, rho -> infinity is `spaced_logsnr`.  Raises
    ValueError where `spaced` does, and if rho < 1.
    """
    if not rho >= 1:
        raise ValueError(f"rho must be at least 1, not {rho:g}")
    # σ_i = (σ_max^{1/ρ} + i/(n-1) (σ_min^{1/ρ} - σ_max^{1/ρ}))^ρ,  i = 0..n-1                      EDM Eq. (5)
    return _even(visible(schedule) ** (-0.5 / rho), n, top)


def _even(measure, n, top):
    """n distinct falling levels from `top` to 1 between which the monotone table `measure` (T+1,) changes evenly.

    Each step aims at its share of the way that is left to level 1, and lands on the whole level nearest to that.
    """
    T = len(measure) - 1 if top is None else top
    levels, measure = spaced(T, n)[:1], measure[: T + 1]
    for left in range(n - 1, 0, -1):  # levels still to come, this one among them
        t = levels[-1]
        aim = torch.lerp(measure[t], measure[1], 1 / left)
        nearest = (measure - aim)[1:].abs().argmin().item() + 1
        levels.append(min(max(nearest, left), t - 1))  # fall strictly, and leave room for those to come
    return levels


def adjacent(schedule, timesteps=None):
    """The pairs (t, s) that a sampler walks over, the last one ending in s = 0.  Default: every level.

    Raises ValueError unless `timesteps` are one or more levels of 1..T that fall strictly.
    """
    levels = [*(range(schedule.T, 0, -1) if timesteps is None else timesteps), 0]
    if len(levels) == 1 or levels[0] > schedule.T or any(t <= s for t, s in pairwise(levels)):
        raise ValueError(f"timesteps must fall strictly and lie in 1..{schedule.T}: {levels[:-1]}")
    return list(pairwise(levels))


def reverse_variance(schedule, guess, t, s, which):
    """σ² of the reverse step t -> s, by name: "small", "large" or "learned", as `ddpm` explains them.

    guess: what the denoiser returned at t.  t, s: ints, or (B,).  Returns one number, or a tensor shaped to multiply x.
    Raises ValueError for "learned" where the guess has no variance, and for an unknown name.
    """
    if which not in ("small", "large", "learned"):
        raise ValueError(f"variance must be 'small' or 'large' or 'learned', not {which!r}")
    if which == "learned":
        if not hasattr(guess, "variance"):
            raise ValueError("no variance was learned: train one with --diffusion.process learned_variance")
        return guess.variance(t, s)
    variance = schedule.jump_beta(t, s) if which == "large" else schedule.posterior_variance(t, s)
    return variance if variance.ndim == 0 else column(variance, guess[0])


def image_noise(seed, numbers):
    """A `noise_like` in which image i of the batch has its own generator, seeded by (seed, numbers[i]).

    So picture number i is the same in any batch.  NumPy's generator, because torch's on the CPU keeps only 32 bits of
    a seed; drawn on the CPU in float32, so that every device gets the same noise.
    """
    generators = [np.random.default_rng((seed, number)) for number in numbers]

    def noise_like(x):
        draws = torch.from_numpy(np.stack([g.standard_normal(x.shape[1:], dtype=np.float32) for g in generators]))
        draws = draws if x.device.type == "cpu" else draws.pin_memory()  # so that the host need not wait for the copy
        return draws.to(device=x.device, dtype=x.dtype, non_blocking=True)

    return noise_like


def begin(seed, numbers, shape, device):
    """(x_T, noise_like): where the pictures with these numbers, of this shape (C, H, W), begin; the draws to come."""
    noise_like = image_noise(seed, numbers)
    return noise_like(torch.empty(len(numbers), *shape, device=device)), noise_like


def last(walk):
    """The picture at the end of a walk of Steps, none of which is kept."""
    for step in walk:
        x = step.x
    return x


def counted(denoise):
    """The same denoise, and a list that gets the level of each network evaluation."""
    calls = []

    def counting(x, t):
        calls.append(t)
        return denoise(x, t)

    return counting, calls
