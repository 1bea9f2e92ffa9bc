"""Which noise does a given picture come from?

DDIM without fresh noise is a fixed path from noise to picture; this walks it backwards (Song et al. 2021).  The way
back down, `ddim`, then returns the picture, up to an error that falls as steps are added.  Read first: samplers.py.
"""

import torch

from diffusion.ode import angles
from diffusion.steps import Step, adjacent


@torch.no_grad()
def invert(denoise, schedule, x_0, *, timesteps=None, refine=0):
    """From the picture up to x_T.  Yields a Step a level, the last one at timesteps[0].

    A step up needs ε̂ at the level above, which is not there yet; ε̂(x_s, t) stands in for it, an error of first order.
    refine: how often the step is repeated with the x_t so found; each makes `ddim` come back closer to x_0, unless the
    steps are too long for the network.
    denoise, timesteps: as in `ddim`; better without clipping.  Raises ValueError for a step that cannot be undone: one
    from hardly any signal straight to the picture, where nearly every x_t leads to the same x_s.
    """
    signal, noise, phi = schedule.signal, schedule.noise, angles(schedule)
    x = x_0
    for t, s in reversed(adjacent(schedule, timesteps)):
        turn = phi[t] - phi[s]
        if turn.cos() < 0.05:
            raise ValueError(f"the step from {t} to {s} is too long to be walked backwards: take more of them")
        x0, eps = denoise(x, t)
        # x_s = √ᾱ_s x̂_0 + √(1-ᾱ_s) ε̂, read from right to left; x_t = √ᾱ_t x̂_0 + √(1-ᾱ_t) ε̂              DDIM Eq. (12)
        x_t = signal[t] / signal[s] * (x - noise[s] * eps) + noise[t] * eps
        for _ in range(refine):
            x0, eps = denoise(x_t, t)
            v = signal[t] * eps - noise[t] * x0  #                                           Salimans & Ho 2022, App. D
            # x_t = cos φ_t x̂_0 + sin φ_t ε̂ and v̂ = -sin φ_t x̂_0 + cos φ_t ε̂, so the step is a turn by δ = φ_t - φ_s:
            # x_s = cos δ x_t - sin δ v̂, read from right to left.  Why not by ε̂ = (x_t - √ᾱ_t x̂_0) / √(1-ᾱ_t) and the
            # line above?  Where √ᾱ_t is tiny, that returns the x_t which it was given, and a repeat mends nothing.
            x_t = (x + turn.sin() * v) / turn.cos()
        x = x_t
        yield Step(t, x, x0)
