"""What if a network were told σ itself, any real number, and always shown and asked for numbers of unit variance?

Karras et al. 2022 ("EDM") noise a picture to x̄ = x_0 + σε, whose variance σ² + σ_data² spans many orders of magnitude.
So the network F is shown c_in x̄, of variance 1, and D = c_skip x̄ + c_out F is taken for the picture: near σ = 0, D
copies x̄ and F mends a little; where σ is large, c_skip is nearly 0 and F draws all of it.  ln σ is drawn from a normal
distribution: most training goes where pictures take shape.  For σ_data = 1 F is √(1-ᾱ) x_0 - √ᾱ ε, which is -v.

Our coordinates are x_t = x̄/√(1+σ²), so ᾱ = 1/(1+σ²), and every sampler, bound and editor works as it is: DDIM is
Euler in σ, and `heun` is EDM's deterministic sampler, over EDM's levels up to rounding.  Read first: process.py.

Letters: u in [1, T] is a level that need not be whole.  EDM writes x for x̄.
"""

import torch

from diffusion.process import GaussianDiffusion, column
from diffusion.schedule import Schedule
from diffusion.steps import SIGMA_MAX

SIGMA_MIN, RHO = 0.002, 7.0  # σ of level 1, as T's is SIGMA_MAX, and how much denser the levels lie near 1
SIGMA_DATA = 0.5  # standard deviation of the pixels of pictures
MEAN, STD = -1.2, 1.2  # of ln σ in training


def sigma_at(u, T):
    """σ of the levels u, real numbers in [1, T] or 0, the data, or a tensor of them; as float64."""
    u = torch.as_tensor(u, dtype=torch.float64)
    low, high = SIGMA_MIN ** (1 / RHO), SIGMA_MAX ** (1 / RHO)
    # σ_i = (σ_max^{1/ρ} + i/(N-1) (σ_min^{1/ρ} - σ_max^{1/ρ}))^ρ,  i = T - u,  N = T                   EDM Eq. (5)
    return torch.where(u < 1, 0.0, (high + (T - u) / (T - 1) * (low - high)) ** RHO)


def level_of(sigma, T):
    """The level u in [1, T] at which `sigma_at` is sigma (float64); σ outside its range gives the nearest end."""
    low, high = SIGMA_MIN ** (1 / RHO), SIGMA_MAX ** (1 / RHO)
    return (T - (sigma ** (1 / RHO) - high) / (low - high) * (T - 1)).clamp(1, T)


class EDM(GaussianDiffusion):
    """GaussianDiffusion whose training knows a continuum of levels; whole ones, for the samplers, are a table as ever.

    T: number of whole levels, at least 2.  sigma_data: standard deviation of the data.  Where the base class takes t,
    any real u in [1, T] will do in q_sample, target, to_x0_eps and loss; q_sample takes 0 too.
    """

    def __init__(self, T=1000, sigma_data=SIGMA_DATA):
        if T < 2:
            raise ValueError(f"EDM needs at least 2 levels, one at each end, not {T}")
        sigma = sigma_at(torch.arange(T + 1), T)
        ab = 1 / (1 + sigma**2)  # x̄ √ᾱ has the variance 1 that every x_t has
        betas = torch.cat([torch.zeros(1, dtype=torch.float64), 1 - ab[1:] / ab[:-1]])
        super().__init__(Schedule(betas, ab), prediction="v")
        self.sigma_data = sigma_data

    @classmethod
    def from_config(cls, config):
        """The process that a config.Diffusion describes: T is all that it may choose."""
        return cls(config.T)

    def draw_t(self, n, device):
        """n real levels u, (n,) float64 in [1, T]: ln σ ~ N(MEAN, STD²)."""
        return level_of((MEAN + STD * torch.randn(n, device=device).double()).exp(), self.T)

    def coefficients(self, u, x):
        """c_skip, c_out, c_in and σ at the levels u, as columns for x.

        This c_skip makes c_out, which multiplies F's errors, as small as can be.
        """
        sigma = sigma_at(u, self.T)
        total = sigma**2 + self.sigma_data**2  # the variance of x̄
        # c_skip = σ_data² / (σ² + σ_data²),  c_out = σ σ_data / √(σ² + σ_data²),  c_in = 1 / √(σ² + σ_data²)
        parts = (self.sigma_data**2 / total, sigma * self.sigma_data / total.sqrt(), 1 / total.sqrt(), sigma)
        return [column(part, x) for part in parts]

    def q_sample(self, x_0, t, eps):
        """x_t = x̄/√(1+σ²) for x̄ = x_0 + σε.  x_0, eps: (B, C, H, W); t: (B,), whole or not."""
        sigma = column(sigma_at(t, self.T), x_0)
        return (x_0 + sigma * eps) / (1 + sigma**2).sqrt()

    def target(self, x_0, eps, t):
        """What F should be: of unit variance where x_0 has the variance σ_data²."""
        _, _, c_in, sigma = self.coefficients(t, x_0)
        # (x_0 - c_skip x̄) / c_out, with 1 - c_skip = σ² c_in² and c_out = σ σ_data c_in substituted on paper: the
        # difference would be lost in rounding near σ = 0
        return c_in * (sigma / self.sigma_data * x_0 - self.sigma_data * eps)

    def to_x0_eps(self, prediction, x_t, t):
        """The network's output F as (x0_hat, eps_hat), which satisfy x_t = √ᾱ_t x0_hat + √(1-ᾱ_t) eps_hat."""
        c_skip, c_out, c_in, sigma = self.coefficients(t, x_t)
        x_bar = (1 + sigma**2).sqrt() * x_t
        # D(x̄; σ) = c_skip x̄ + c_out F(c_in x̄; u)                                                      EDM Eq. (7)
        # Deviation: F is told u in place of ln σ / 4, as our sinusoids are made for numbers from 1 to T.
        # ε̂ = (x̄ - D) / σ, divided on paper: 1 - c_skip = σ² c_in²,  c_out = σ σ_data c_in
        return c_skip * x_bar + c_out * prediction, c_in * (sigma * c_in * x_bar - self.sigma_data * prediction)

    def weighted_error(self, prediction, x_0, eps, t):
        """λ(σ) ‖x_0 - D‖² of each image with λ = 1/c_out², the mean square error of F: (B,).

        F is of unit variance at every level, so all levels weigh the same.
        """
        return (self.target(x_0, eps, t) - prediction).square().flatten(1).mean(dim=1)

    def ask(self, model, x_t, t, y):
        """The network is shown c_in x̄, of unit variance at every level, in place of x_t."""
        _, _, c_in, sigma = self.coefficients(t, x_t)
        return super().ask(model, c_in * (1 + sigma**2).sqrt() * x_t, t, y)
