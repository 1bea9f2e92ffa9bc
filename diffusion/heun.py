"""What does a second look at the end of each step buy?

Divided by √ᾱ, x_t is x̄ = x̂_0 + σε̂, σ = √((1-ᾱ)/ᾱ), and the noise-free way back is dx̄/dσ = ε̂ (ode.py).  DDIM follows its
slope from the start of a step (Euler).  Heun's method, as in Karras et al. 2022 ("EDM"), asks again at the end and
takes the mean of both slopes: second order, at two evaluations a step.  Read next: ode.py, where the equation is from.

EDM writes x for our x̄, and D(x; σ) for the guess x̂_0.
"""

import torch

from diffusion.steps import Step, adjacent


@torch.no_grad()
def heun(denoise, schedule, x_T, *, timesteps=None, noise_like=torch.randn_like):
    """Heun's method of EDM, second order: two network evaluations a step, one in the last, so 2n - 1 for n levels.

    A step from a level with hardly any signal, such as T on the cosine schedule, makes do with one, too.  Made for
    `spaced_rho` levels.
    noise_like is not used: x_T decides the picture.  The rest as in `ddpm`.
    """
    signal, noise = schedule.signal, schedule.noise
    sigma = noise / signal
    x = x_T
    for t, s in adjacent(schedule, timesteps):
        x0, eps = denoise(x, t)
        # d = (x̄ - D(x̄; σ_t)) / σ_t, which is ε̂;  Euler: x̄_s = x̄ + (σ_s - σ_t) d = x̂_0 + σ_s d            EDM Alg. 1
        euler = signal[s] * x0 + noise[s] * eps
        x = euler
        # No second look at σ = 0, where there is no noise to see.  Nor from a level with hardly any signal, like T on
        # the cosine schedule, or none: x̂_0 cannot change there, and σ_t, huge or infinite, would multiply any error.
        if s > 0 and signal[t] > 1e-3:
            _, eps_s = denoise(euler, s)
            # x̄_s = x̄ + (σ_s - σ_t) (d + d') / 2: half of the change in slope is added to Euler's step     EDM Alg. 1
            x = euler + signal[s] * (sigma[s] - sigma[t]) / 2 * (eps_s - eps)
        yield Step(s, x, x0)
