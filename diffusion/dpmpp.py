"""How can old guesses save new evaluations?

DDIM holds the guess x̂_0 still during a step.  DPM-Solver++ 2M (Lu et al. 2022) lets it move on as it moved between
the last two levels, in a straight line in λ = log(√ᾱ / √(1-ᾱ)), half the log-SNR.  That is second order, an error
four times smaller with twice the steps, and still one evaluation a step.  Read next: heun.py, which pays a second one.

The DPM-Solver papers write α for our √ᾱ and σ for our √(1-ᾱ).
"""

import torch

from diffusion.steps import Step, adjacent


@torch.no_grad()
def dpmpp(denoise, schedule, x_T, *, timesteps=None, noise_like=torch.randn_like):
    """DPM-Solver++ 2M, second order with one network evaluation a step; made for `spaced_logsnr` levels.

    denoise, x_T, timesteps as in `ddpm`; noise_like is not used: x_T decides the picture.  Yields a Step a level.
    """
    signal, noise = schedule.signal, schedule.noise
    half_log_snr = signal.log() - noise.log()  # λ: rises as t falls; +∞ at t = 0, -∞ where nothing is left of the data
    x, before, h_before = x_T, None, None
    for t, s in adjacent(schedule, timesteps):
        x0, _ = denoise(x, t)
        h = half_log_snr[s] - half_log_snr[t]
        guess = x0
        # On the exact path x_s = σ_s/σ_t x_t + σ_s ∫ e^λ x̂_0 dλ, λ_t to λ_s.  With a constant D for x̂_0 that is the
        # last line; with D = x̂_0(t), DDIM.  Here D is the guess expected half-way, by the line through the last two.
        # The first step has no past.  The last one, to λ = ∞, is infinitely long: no straight line reaches so far.
        if before is not None and s > 0:
            r = h_before / h
            # D = (1 + 1/2r) x̂_0(t_{i-1}) - 1/2r x̂_0(t_{i-2}),  r = h_{i-1} / h_i             DPM-Solver++ Alg. 2
            guess = x0 + (x0 - before) * (1 / (2 * r))
        # x_{t_i} = σ_i/σ_{i-1} x_{t_{i-1}} - α_i (e^{-h_i} - 1) D,  e^{-h} = α_{i-1} σ_i / (σ_{i-1} α_i)
        kept = noise[s] / noise[t]
        x = kept * x + (signal[s] - kept * signal[t]) * guess
        before, h_before = x0, h
        yield Step(s, x, x0)
