"""How does one repaint a part of a picture with a model that has only learned to draw whole ones?

Denoise everything, but after each step put the known pixels back, as noisy as that level should be.  The two parts
then fit badly, because the new one was drawn before it could see the old one; RePaint (Lugmayr et al. 2022) therefore
goes back up by some levels and down again, several times, until they have met.  Read first: samplers.py.
"""

import torch

from diffusion.samplers import ddpm
from diffusion.steps import Step, adjacent


def there_and_back(pairs, jump, resamples):
    """The walk over `pairs` with each `jump` of them done `resamples` times; (t, s) with t < s leads back up."""
    for start in range(0, len(pairs), jump):
        block = pairs[start : start + jump]
        for again in range(resamples):
            yield from block
            if again < resamples - 1:
                yield block[-1][1], block[0][0]


@torch.no_grad()
def inpaint(
    denoise, schedule, x_T, picture, known, *, timesteps=None, jump=5, resamples=5, noise_like=torch.randn_like
):
    """Pictures like `picture` where `known` is True, exactly; drawn by the model elsewhere.  Yields a Step a level.

    picture: (B, C, H, W) in [-1, 1].  known: bool, broadcasts to it.  jump: levels of `timesteps` in one stretch.
    resamples: how often each stretch is walked; 1 is plain replacement.  The rest as in `ddpm`, whose steps these are.
    """
    x = x_T
    for t, s in there_and_back(adjacent(schedule, timesteps), jump, resamples):
        if t < s:
            # back up, all pixels alike, in one jump: x_s = √(1-β) x_t + √β ε,  β = 1 - ᾱ_s/ᾱ_t             DDPM Eq. (2)
            beta = schedule.jump_beta(s, t)
            x = (1 - beta).sqrt() * x + beta.sqrt() * noise_like(x)
            continue
        # one step of the ordinary sampler: the first of a walk that begins with the pair (t, s)
        step = next(ddpm(denoise, schedule, x, timesteps=[t, s] if s else [t], noise_like=noise_like))
        level = picture  # the known pixels at level s: at 0 the picture itself, bit for bit
        if s > 0:
            level = schedule.signal[s] * picture + schedule.noise[s] * noise_like(x)
        x = torch.where(known, level, step.x)
        yield Step(s, x, step.x0)
