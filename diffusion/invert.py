"""Which noise does a given picture come from?

DDIM without fresh noise is a fixed path from noise to picture; this walks it backwards (Song et al. 2021).  The way
back down, `ddim`, then returns the picture, up to an error that falls as steps are added.  Read first: samplers.py.
"""

import torch

from diffusion.process import at
from diffusion.steps import Step, adjacent


@torch.no_grad()
def invert(denoise, schedule, x_0, *, timesteps=None, refine=0):
    """From the picture up to x_T.  Yields a Step a level, the last one at timesteps[0].

    A step up needs ε̂ at the level above, which is not there yet; ε̂(x_s, t) stands in for it, an error of first order.
    refine: how often the step is repeated with the x_t so found; each makes `ddim` come back closer to x_0.
    denoise, timesteps: as in `ddim`; better without clipping.
    """
    signal, noise = schedule.alpha_bar.sqrt(), (1 - schedule.alpha_bar).sqrt()
    x = x_0
    for t, s in reversed(adjacent(schedule, timesteps)):
        a_t, b_t, a_s, b_s = at(signal, t, x), at(noise, t, x), at(signal, s, x), at(noise, s, x)
        guess = x
        for _ in range(1 + refine):
            x0, eps = denoise(guess, t)
            # x_s = √ᾱ_s x̂_0 + √(1-ᾱ_s) ε̂, read from right to left; x_t = √ᾱ_t x̂_0 + √(1-ᾱ_t) ε̂          DDIM Eq. (12)
            guess = a_t / a_s * (x - b_s * eps) + b_t * eps
        x = guess
        yield Step(t, x, x0)
