"""Which noise does a given picture come from?

DDIM without fresh noise is a fixed path from noise to picture; this walks it backwards (Song et al. 2021).  The way
back down, `ddim`, then returns the picture, up to an error that falls as steps are added.  Read first: samplers.py.
"""

import torch

from diffusion.sde import angles
from diffusion.steps import Step, adjacent


@torch.no_grad()
def invert(denoise, schedule, x_0, *, timesteps=None, refine=0):
    """From the picture up to x_T.  Yields a Step a level, the last one at timesteps[0].

    A step up needs v̂ at the level above, which is not there yet; v̂(x_s, t) stands in for it, an error of first order.
    refine: how often the step is repeated with the x_t so found; each makes `ddim` come back closer to x_0.
    denoise, timesteps: as in `ddim`; better without clipping.  Raises ValueError for a step that cannot be undone: from
    hardly any signal straight to the picture, where all x_t look alike.
    """
    phi = angles(schedule)
    x = x_0
    for t, s in reversed(adjacent(schedule, timesteps)):
        turn = phi[t] - phi[s]
        if turn.cos() < 0.05:
            raise ValueError(f"the step from {t} to {s} is too long to be walked backwards: take more of them")
        guess = x
        for _ in range(1 + refine):
            x0, eps = denoise(guess, t)
            v = phi[t].cos() * eps - phi[t].sin() * x0  # v̂                                 Salimans & Ho 2022, App. D
            # Both x and v̂ turn by the angle φ_t - φ_s: x_s = cos(φ_t - φ_s) x_t - sin(φ_t - φ_s) v̂, which is DDIM's
            # step, read from right to left.  (With ε̂ for v̂ repeating would not help where σ_t is far above σ_s.)
            guess = (x + turn.sin() * v) / turn.cos()  #                                                DDIM Eq. (12)
        x = guess
        yield Step(t, x, x0)
