"""How does one walk from pure noise back to a picture?

Both samplers visit a falling list of noise levels and, for each pair of neighbours (t, s), ask the network what the
clean picture is, then step to level s < t.  `ddpm` (Ho et al. 2020) draws from the posterior; `ddim` (Song et al.
2021) follows a path that can be free of randomness and takes long strides.  A new sampler is a new function like these.

The DDIM paper writes α_t for what everyone else, and this code, calls ᾱ_t.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from diffusion.process import at, q_posterior


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


@torch.no_grad()
def ddpm(denoise, schedule, x_T, *, timesteps=None, variance="small", noise_like=torch.randn_like) -> Iterator[Step]:
    """Ancestral sampling, DDPM Alg. 2, over all levels or any subset of them.

    denoise: (x_t, t) -> (x0_hat, eps_hat).  x_T: (B, C, H, W), noise at level timesteps[0].
    variance: "small" is β̃_t, exact for data that is one point; "large" is β_t, exact for white noise (DDPM Sec. 3.2).
    noise_like: x -> standard normal noise of its shape, called once a step except the last.  Yields a Step a level.
    """
    if variance not in ("small", "large"):
        raise ValueError(f"variance must be 'small' or 'large', not {variance!r}")
    x = x_T
    for t, s in adjacent(schedule, timesteps):
        x0, _ = denoise(x, t)
        mean, posterior_variance = q_posterior(schedule, x0, x, t, s)  # μ̃_t with x̂_0 for x_0         DDPM Eq. (11)
        beta = 1 - schedule.alpha_bar[t] / schedule.alpha_bar[s]
        std = (posterior_variance if variance == "small" else beta).sqrt()
        # x_{t-1} = μ + σ_t z, and z = 0 in the last step: the picture itself carries no noise         DDPM Alg. 2
        x = mean + std * noise_like(x) if s > 0 else mean
        yield Step(s, x, x0)


@torch.no_grad()
def ddim(denoise, schedule, x_T, *, timesteps=None, eta=0.0, noise_like=torch.randn_like) -> Iterator[Step]:
    """DDIM over all levels or any subset of them.

    eta: 0 draws no noise at all, so x_T decides the picture; 1 has the variance of `ddpm`.  A larger eta is refused
    where the noise alone would exceed the level's variance.  The rest as in `ddpm`.
    """
    pairs = adjacent(schedule, timesteps)
    check_eta(schedule, pairs, eta)
    x = x_T
    for t, s in pairs:
        ab_s = schedule.alpha_bar[s]
        x0, eps = denoise(x, t)  # x̂_0                          DDIM Eq. (9)
        sigma = eta * _posterior_std(schedule, t, s)
        # x_s = √ᾱ_s x̂_0  +  √(1-ᾱ_s-σ²) ε̂  +  σ z: picture, noise pointing back at x_t, fresh noise    DDIM Eq. (12)
        x = at(schedule.alpha_bar.sqrt(), s, x) * x0 + (1 - ab_s - sigma**2).clamp(min=0).sqrt() * eps
        if sigma > 0:
            x = x + sigma * noise_like(x)
        yield Step(s, x, x0)


def _posterior_std(schedule, t, s):
    """σ of DDIM at eta = 1: the standard deviation of q(x_s | x_t, x_0)."""
    ab_t, ab_s = schedule.alpha_bar[t], schedule.alpha_bar[s]
    # σ = √((1-ᾱ_s) / (1-ᾱ_t)) √(1 - ᾱ_t/ᾱ_s)                                                    DDIM Eq. (16)
    return ((1 - ab_s) / (1 - ab_t)).sqrt() * (1 - ab_t / ab_s).sqrt()


def check_eta(schedule, pairs, eta):
    """Raise ValueError, naming the largest that fits, if eta < 0 or σ² would exceed the variance 1-ᾱ_s of a level."""
    ab = schedule.alpha_bar
    limits = [((1 - ab[s]).sqrt() / _posterior_std(schedule, t, s)).item() for t, s in pairs if s > 0]
    largest = min(limits, default=1.0)
    if not 0 <= eta <= largest:
        raise ValueError(f"eta must be from 0 to {largest:.4g} for these timesteps, not {eta:g}")


SAMPLERS: dict[str, Callable[..., Iterator[Step]]] = {"ddpm": ddpm, "ddim": ddim}


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
