"""How many bits does the model need to store a picture?

The variational bound on -log p(x_0) of Ho et al. 2020 ("DDPM"), exact in every term: what is left of the picture at T,
what each reverse step gets wrong, and the rounding to 256 grey levels at the end.  It is a bound for `ddpm` with the
same variance.  Knows no network: it asks the same `denoise(x_t, t)` as the samplers.  Read first: process.py.

All terms are in nats and summed over an image's pixels, (B,); in_bits() makes them comparable between sizes.
"""

import math
from itertools import pairwise

import torch

from diffusion.process import q_posterior
from diffusion.steps import reverse_variance


def kl(mean_1, variance_1, mean_2, variance_2):
    """D_KL(N(mean_1, variance_1) ‖ N(mean_2, variance_2)), elementwise, in nats."""
    ratio = variance_1 / variance_2
    return 0.5 * (ratio - 1 - torch.log(ratio) + (mean_1 - mean_2) ** 2 / variance_2)


def in_bits(nats, x_0):
    """Nats of an image -> bits per dimension, a dimension being one channel of one pixel."""
    return nats / (x_0[0].numel() * math.log(2))


def prior_term(schedule, x_0):
    """L_T: the nats that it takes to say which x_T was drawn, beyond what N(0, I) says, (B,).  It needs no network."""
    # L_T = D_KL(q(x_T | x_0) ‖ N(0, I))                                                          DDPM Eq. (5)
    ab = schedule.alpha_bar[-1].to(x_0.dtype)
    return kl(ab.sqrt() * x_0, 1 - ab, torch.zeros_like(x_0), torch.ones_like(ab)).flatten(1).sum(dim=1)


def step_term(schedule, denoise, x_0, x_t, t, variance="small"):
    """L_{t-1} for 2 <= t <= T: the reverse step that knows x_0 against the one that asks the network, (B,).

    x_t: a draw from q(x_t | x_0).  t: an int, or (B,).  variance: of the reverse step, as in `ddpm`: "small" β̃_t,
    "large" β_t or "learned".
    """
    # L_{t-1} = D_KL(q(x_{t-1} | x_t, x_0) ‖ p_θ(x_{t-1} | x_t))                                     DDPM Eq. (5)
    # With the small variance both have σ_t² = β̃_t and C is 0: L_{t-1} = ‖μ̃_t - μ_θ‖² / 2σ_t² + C     DDPM Eq. (8)
    mean, posterior_variance = q_posterior(schedule, x_0, x_t, t, t - 1)
    guess = denoise(x_t, t)
    model_mean, _ = q_posterior(schedule, guess[0], x_t, t, t - 1)
    model_variance = reverse_variance(schedule, guess, t, t - 1, variance)
    return kl(mean, posterior_variance, model_mean, model_variance).flatten(1).sum(dim=1)


def decoder_term(schedule, denoise, x_0, x_1, variance="small"):
    """L_0 = -log p_θ(x_0 | x_1) for pictures of 256 grey levels, x_0 = k / 127.5 - 1: (B,).

    β̃_1 = 0 is no density, so "small" too takes β_1 for the variance of the last step.
    """
    guess = denoise(x_1, 1)
    mean, _ = q_posterior(schedule, guess[0], x_1, 1, 0)
    std = reverse_variance(schedule, guess, 1, 0, "large" if variance == "small" else variance).sqrt()
    # p_θ(x_0 | x_1) = ∫ N(x; μ_θ, σ_1²) dx over x_0 ± 1/255, open outwards at -1 and 1                  DDPM Eq. (13)
    above = torch.where(x_0 > 0.999, math.inf, (x_0 + 1 / 255 - mean) / std)
    below = torch.where(x_0 < -0.999, -math.inf, (x_0 - 1 / 255 - mean) / std)
    return -_log_interval(below, above).flatten(1).sum(dim=1)


def strata(T, n):
    """At most n stretches (first, last) of levels that together are 2..T, short where t is small and L_{t-1} steep."""
    ends = sorted({1 + math.ceil((T - 1) * (i / n) ** 2) for i in range(n + 1)}) if n < T - 1 else range(1, T + 1)
    return [(low + 1, high) for low, high in pairwise(ends)]


@torch.no_grad()
def bound(denoise, schedule, x_0, noise_like, draw, levels, variance="small"):
    """Yields the terms of the bound in nats, (B,) each: L_0, then one for each of `strata(T, levels)`, then L_T.

    draw: (low, high) -> a whole number, each equally likely.  Each stretch is measured at one level drawn from it and
    multiplied by its length: the sum is right on average with few levels, and without any drawing at levels >= T - 1.
    x_0: (B, C, H, W) of 256 grey levels in [-1, 1], best in float64.
    """

    def noisy(t):
        # x_t = √ᾱ_t x_0 + √(1-ᾱ_t) ε                                                              DDPM Eq. (4)
        return schedule.signal[t] * x_0 + schedule.noise[t] * noise_like(x_0)

    # -log p(x_0) ≤ L = E [L_T + Σ_{t>1} L_{t-1} + L_0]                                  DDPM Eq. (3), DDPM Eq. (5)
    yield decoder_term(schedule, denoise, x_0, noisy(1), variance)
    for first, last in strata(schedule.T, levels):
        t = draw(first, last)
        yield (last - first + 1) * step_term(schedule, denoise, x_0, noisy(t), t, variance)
    yield prior_term(schedule, x_0)


def _log_interval(a, b):
    """log(Φ(b) - Φ(a)), a < b, without cancellation: far out on the right, the same on the left is exact."""
    right = a > 0
    a, b = torch.where(right, -b, a), torch.where(right, -a, b)
    high, low = torch.special.log_ndtr(b), torch.special.log_ndtr(a)
    # in float64 an empty interval gets log 1e-300, not -∞
    return high + torch.log(-torch.expm1((low - high).clamp(max=-1e-300)))
