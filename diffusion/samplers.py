"""How does one walk from pure noise back to a picture?

A sampler visits a falling list of noise levels and, for each pair of neighbours (t, s), asks the network what the
clean picture is, then steps to level s < t.  Of the two here, `ddpm` (Ho et al. 2020) draws from the posterior; `ddim`
(Song et al. 2021) follows a path that can be free of randomness and takes long strides.  A new sampler is a new
function like these.  Read beside it: steps.py.  Read next: ../models/unet.py, the network that is asked.

The DDIM paper writes α_t for what everyone else, and this code, calls ᾱ_t.
"""

from collections.abc import Callable, Iterator

import torch

from diffusion.dpmpp import dpmpp
from diffusion.heun import heun
from diffusion.ode import ode
from diffusion.pc import pc
from diffusion.process import q_posterior
from diffusion.steps import Step, adjacent, reverse_variance


@torch.no_grad()
def ddpm(denoise, schedule, x_T, *, timesteps=None, variance="small", noise_like=torch.randn_like) -> Iterator[Step]:
    """Ancestral sampling, DDPM Alg. 2, over all levels or any subset of them.

    denoise: (x_t, t) -> (x0_hat, eps_hat).  x_T: (B, C, H, W), noise at level timesteps[0].
    variance: "small" is β̃_t, exact for data that is one point; "large" is β_t, exact for white noise (DDPM Sec. 3.2);
    "learned" is the network's own, see learned_variance.py.
    noise_like: x -> standard normal noise of its shape, called once a step except the last.  Yields a Step a level.
    """
    x = x_T
    for t, s in adjacent(schedule, timesteps):
        guess = denoise(x, t)
        x0, _ = guess
        # μ̃_t with x̂_0 = (x_t - √(1-ᾱ_t) ε̂) / √ᾱ_t for x_0 is (x_t - β_t / √(1-ᾱ_t) ε̂) / √α_t: the same mean, but only
        # x̂_0 can be clipped to where pictures are                                                    DDPM Eq. (11)
        mean, _ = q_posterior(schedule, x0, x, t, s)
        sigma = reverse_variance(schedule, guess, t, s, variance).sqrt()
        # x_{t-1} = μ + σ_t z, and z = 0 in the last step: the picture itself carries no noise         DDPM Alg. 2
        x = mean + sigma * noise_like(x) if s > 0 else mean
        yield Step(s, x, x0)


@torch.no_grad()
def ddim(denoise, schedule, x_T, *, timesteps=None, eta=0.0, noise_like=torch.randn_like) -> Iterator[Step]:
    """DDIM over all levels or any subset of them.

    eta: 0 draws no noise at all, so x_T decides the picture; 1 has the variance of `ddpm`.  A larger eta is refused
    where the noise alone would exceed the level's variance.  The rest as in `ddpm`.
    """
    pairs, ab = adjacent(schedule, timesteps), schedule.alpha_bar
    check_eta(schedule, pairs, eta)
    x = x_T
    for t, s in pairs:
        x0, eps = denoise(x, t)  # x̂_0 = (x_t - √(1-ᾱ_t) ε̂) / √ᾱ_t                                    DDIM Eq. (9)
        # σ = η √((1-ᾱ_s) / (1-ᾱ_t)) √(1 - ᾱ_t/ᾱ_s), which is η √β̃: at eta = 1 the noise of `ddpm`        DDIM Eq. (16)
        sigma = eta * schedule.posterior_variance(t, s).sqrt()
        # Level s holds noise of variance 1-ᾱ_s: σ² of it is drawn anew, the rest is the old noise, and they add up.
        # x_s = √ᾱ_s x̂_0  +  √(1-ᾱ_s-σ²) ε̂  +  σ z                                                     DDIM Eq. (12)
        x = ab[s].sqrt() * x0 + (1 - ab[s] - sigma**2).clamp(min=0).sqrt() * eps
        if sigma > 0:
            x = x + sigma * noise_like(x)
        yield Step(s, x, x0)


def check_eta(schedule, pairs, eta):
    """Raise ValueError, naming the largest that fits, if eta < 0 or σ² would exceed the variance 1-ᾱ_s of a level."""
    ab = schedule.alpha_bar
    limits = [((1 - ab[s]) / schedule.posterior_variance(t, s)).sqrt().item() for t, s in pairs if s > 0]
    largest = min(limits, default=1.0)
    if not 0 <= eta <= largest:
        raise ValueError(f"eta must be from 0 to {largest:.4g} for these timesteps, not {eta:g}")


SAMPLERS: dict[str, Callable[..., Iterator[Step]]] = {
    "ddpm": ddpm, "ddim": ddim, "dpmpp": dpmpp, "heun": heun, "pc": pc, "ode": ode,
}  # fmt: skip
