"""How fast does a picture turn into noise?

A schedule says how much noise each of the T forward steps adds (β_t) and how much of the picture's variance is left
after t of them (ᾱ_t).  Ho et al. 2020 ("DDPM") use a line; Nichol & Dhariwal 2021 ("iDDPM") a cosine, which destroys
the picture more evenly.  Read next: process.py.

Indices are the papers': t = 1..T are the noisy levels and t = 0 is the data, so every table has T + 1 entries.
"""

import math
import warnings
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Schedule:
    """Two tables of shape (T+1,), float64: near t = 0, float32 would keep three or four digits of 1 - ᾱ_t.

    betas[t] = β_t, the variance that step t adds, x_t = √(1-β_t) x_{t-1} + √β_t ε (DDPM Eq. (2)); betas[0] = 0.
    alpha_bar[t] = ᾱ_t, the share of the data's variance left at level t; alpha_bar[0] = 1.
    """

    betas: torch.Tensor
    alpha_bar: torch.Tensor

    @property
    def T(self):
        """Number of noisy levels."""
        return len(self.alpha_bar) - 1

    @property
    def signal(self):
        """√ᾱ_t, (T+1,): what multiplies the picture in x_t = √ᾱ_t x_0 + √(1-ᾱ_t) ε."""
        return self.alpha_bar.sqrt()

    @property
    def noise(self):
        """√(1-ᾱ_t), (T+1,): what multiplies the noise."""
        return (1 - self.alpha_bar).sqrt()

    @property
    def snr(self):
        """Signal-to-noise ratio ᾱ_t / (1 - ᾱ_t), (T+1,): infinite at t = 0, falling to nearly 0 at T."""
        return self.alpha_bar / (1 - self.alpha_bar)

    def jump_beta(self, t, s):
        """β of one jump from level s up to any t > s: betas[t] where s = t - 1.  t, s: ints, or (B,)."""
        # β = 1 - ᾱ_t / ᾱ_s                                                                      iDDPM Eq. (19)
        return 1 - entry(self.alpha_bar, t) / entry(self.alpha_bar, s)

    def posterior_variance(self, t, s):
        """β̃: how uncertain x_s still is if x_t and x_0 are known: 0 at s = 0, small next to t, largest in between."""
        # β̃_t = (1-ᾱ_{t-1}) / (1-ᾱ_t) · β_t                                                       DDPM Eq. (7)
        return (1 - entry(self.alpha_bar, s)) / (1 - entry(self.alpha_bar, t)) * self.jump_beta(t, s)


def entry(table, t):
    """table[t]; t is an int or (B,), and may be on another device than the table."""
    return table.to(t.device)[t] if isinstance(t, torch.Tensor) else table[t]


def from_betas(betas):
    """Schedule from β_1..β_T, a float64 tensor (T,) with values in (0, 1]; β_T = 1 leaves nothing of the picture."""
    betas = torch.cat([torch.zeros(1, dtype=torch.float64), betas])
    # One step is x_t = √α_t x_{t-1} + √β_t ε.  If x_{t-1} = √ᾱ_{t-1} x_0 + √(1-ᾱ_{t-1}) ε', its noise and the new one
    # make one of variance α_t (1-ᾱ_{t-1}) + β_t = 1 - α_t ᾱ_{t-1}: the same formula for t, if ᾱ_t is α_t ᾱ_{t-1}.
    # ᾱ_t = Π_{s≤t} α_s,  α_s = 1 - β_s                                                         DDPM Eq. (4)
    return Schedule(betas, torch.cumprod(1 - betas, dim=0))


def linear(T=1000, beta_start=1e-4, beta_end=0.02):
    """β_t on a straight line from beta_start to beta_end, both reached (DDPM Sec. 4).

    The values are taken as they are: nothing is rescaled when T is not 1000.
    """
    return _warned(from_betas(torch.linspace(beta_start, beta_end, T, dtype=torch.float64)))


def cosine(T=1000, s=0.008, max_beta=0.999):
    """ᾱ_t along a squared cosine (iDDPM).

    s keeps β_1 from vanishing; max_beta keeps the last steps, where the cosine reaches 0, from dividing by 0.
    """
    u = torch.arange(T + 1, dtype=torch.float64) / T
    # ᾱ_t = f(t) / f(0),  f(t) = cos²((t/T + s) / (1 + s) · π/2)                              iDDPM Eq. (17)
    f = torch.cos((u + s) / (1 + s) * math.pi / 2) ** 2
    # β_t = 1 - ᾱ_t / ᾱ_{t-1}, at most max_beta; ᾱ_t is then built up again from these β_t
    return _warned(from_betas((1 - f[1:] / f[:-1]).clamp(max=max_beta)))


def _warned(schedule):
    """`schedule`, and a warning if some of the picture is left at T, as sampling starts from nothing but noise."""
    left = schedule.alpha_bar[-1].sqrt().item()
    if left > 0.05:
        warnings.warn(
            f"the schedule keeps {left:.1%} of the signal at t = T = {schedule.T}, but sampling starts from none: "
            "use more steps, a larger beta_end, or the cosine schedule",
            stacklevel=3,
        )
    return schedule


SCHEDULES = {"linear": linear, "cosine": cosine}


def zero_terminal(schedule):
    """`schedule` with √ᾱ_t shifted and scaled so that √ᾱ_T = 0 and √ᾱ_1 stays: training ends where sampling begins.

    The prediction must be v or x0: at T, x_T and ε are the same, and say nothing of the picture.
    Raises ValueError if T is 1.
    """
    if schedule.T == 1:
        raise ValueError("a schedule of one level has no room for a zero at its end")
    root = schedule.alpha_bar[1:].sqrt()
    # √ᾱ_t ← (√ᾱ_t - √ᾱ_T) √ᾱ_1 / (√ᾱ_1 - √ᾱ_T)                                            Lin et al. 2023 Alg. 1
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    ab = torch.cat([torch.ones(1, dtype=torch.float64), root**2])
    return from_betas(1 - ab[1:] / ab[:-1])
