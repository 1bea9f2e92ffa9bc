"""What if the noise levels were a continuum?

Then noising is a stochastic differential equation, and two things that the network gave us all along get their names:
the score, the slope of log p_t, and a probability-flow ODE whose solutions carry noise to pictures with no randomness.
Any ODE solver will do (here one that chooses its own steps), and the change of volume along the way gives the
likelihood of a picture.  Papers: Song et al. 2021 ("Score SDE"), Salimans & Ho 2022 (angles).  Read next: pc.py.

Letters: φ = arctan σ is the angle of a noise level, √ᾱ = cos φ and √(1-ᾱ) = sin φ: 0 at the data, π/2 at pure noise.
"""

import math

import numpy as np
import torch

from diffusion.steps import Step, adjacent


def score(schedule, eps, t):
    """∇_x log p_t(x) at a point where the network sees the noise eps: uphill is away from the noise."""
    # ε̂ = E[ε | x_t],  ∇ log p_t(x_t) = E[∇ log q(x_t | x_0) | x_t] = -ε̂ / √(1-ᾱ_t)
    return -eps / schedule.noise[t]


def angles(schedule):
    """φ_t of every level, (T+1,) float64, rising from 0.  Finite at both ends, where log-SNR is not."""
    return torch.atan2(schedule.noise, schedule.signal)


def velocity(denoise, schedule):
    """The probability-flow ODE as a function (x, φ) -> dx/dφ, for real φ up to φ_T.

    The network knows whole levels only: x̂_0 is interpolated in φ between the two around it, at one evaluation of each.
    """
    phis = angles(schedule).tolist()

    def v(x, phi):
        t = max(1.0, float(np.interp(phi, phis, range(len(phis)))))
        low = int(t + 1e-6)
        share = t - low
        x0, _ = denoise(x, low)
        if share > 1e-6:
            x0 = torch.lerp(x0, denoise(x, low + 1)[0], share)
        eps = (x - math.cos(phi) * x0) / math.sin(phi)
        # dx = [f(x, t) - ½ g(t)² ∇ log p_t(x)] dt,  f = -½ β x,  g² = β                              Score SDE Eq. (13)
        # √ᾱ = cos φ falls by ½ β √ᾱ dt, so β dt = 2 tan φ dφ; and ∇ log p_t = -ε̂ / sin φ.  With x = cos φ x̂_0 + sin φ ε̂
        # dx = ½ β (ε̂ / sin φ - x) dt = tan φ (ε̂ / sin φ - sin φ ε̂ - cos φ x̂_0) dφ = (cos φ ε̂ - sin φ x̂_0) dφ:
        # dx/dφ = v̂, the picture fades and the noise comes in as in a rotation            Salimans & Ho 2022, App. D
        # With x̄ = x / cos φ and σ = tan φ this reads dx̄ = (cos φ v̂ + sin φ x) dφ / cos² φ = ε̂ dσ, as in heun.py.
        return math.cos(phi) * eps - math.sin(phi) * x0

    return v


def integrate(f, x, a, b, tol, slope=None):
    """Solve dx/du = f(x, u) from u = a to b, x (B, ...), in steps whose estimated error is at most tol in every entry.

    Bogacki & Shampine's embedded pair: a third-order step, and its distance from a second-order one as the estimate.
    Returns x at b and the slope there, where a next stretch may begin: slope is f(x, a), if it is known already.
    Raises ValueError unless tol is positive.
    """
    if not tol > 0:
        raise ValueError(f"tol must be positive, not {tol:g}")
    h, k1 = b - a, f(x, a) if slope is None else slope
    while a != b:
        h = b - a if abs(h) > abs(b - a) else h
        k2 = f(x + h / 2 * k1, a + h / 2)
        k3 = f(x + 3 * h / 4 * k2, a + 3 * h / 4)
        new = x + h / 9 * (2 * k1 + 3 * k2 + 4 * k3)
        end = b if h == b - a else a + h  # b itself, free of rounding
        k4 = f(new, end)  # the next step's k1
        error = (h / 72 * (-5 * k1 + 6 * k2 + 8 * k3 - 9 * k4)).abs().max().item()
        if not math.isfinite(error):
            return new, k4  # no step is small enough for that: let the caller see it
        if error <= tol:
            x, a, k1 = new, end, k4
        # The error grows as h³: aim a little below tol, and change h by no more than a factor of 5.
        h *= min(5.0, max(0.2, 0.9 * (tol / max(error, 1e-300)) ** (1 / 3)))
    return x, k1


@torch.no_grad()
def ode(denoise, schedule, x_T, *, timesteps=None, tol=1e-2, noise_like=torch.randn_like):
    """The probability-flow ODE with steps of its own choice: as many network evaluations as tol asks for.

    tol: largest estimated error of a step in any pixel of the batch (whose images share their steps).  timesteps: the
    levels to yield at, T alone to go straight to the picture; the solver stops at each.  noise_like is not used.
    """
    v, phis = velocity(denoise, schedule), angles(schedule).tolist()
    x, slope = x_T, None
    for t, s in adjacent(schedule, timesteps):
        if t > 1:
            x, slope = integrate(v, x, phis[t], phis[max(s, 1)], tol, slope)
        x0, _ = denoise(x, max(s, 1))
        x = x if s > 0 else x0.expand_as(x)  # below level 1 there is no network: the rest of the way is its guess
        yield Step(s, x, x0)


def log_likelihood(denoise, schedule, x, *, tol=1e-4, probe=None):
    """log p(x) of each image in nats, (B,), under the model's own ODE; x (B, C, H, W) is taken to be at level 1.

    tol: largest estimated error of one step, in every pixel and in log p per dimension.  When probe is None the
    divergence is exact: one backward pass a dimension, for small x.  With a probe, noise like x, it is Hutchinson's
    unbiased estimate: one backward pass.  Needs a denoise without clipping.
    """
    v, phis, d = velocity(denoise, schedule), angles(schedule).tolist(), x[0].numel()

    def joint(state, phi):  # state (B, d+1): x, and ∫ ∇·v dφ a dimension, by which log p falls
        with torch.enable_grad():
            x_phi = state[:, :d].detach().requires_grad_()
            out = v(x_phi.reshape(x.shape), phi).flatten(1)
            directions = torch.eye(d, dtype=x.dtype, device=x.device) if probe is None else probe.flatten(1)[None]
            # ∇·v = Σ_i ∂v_i/∂x_i = E[zᵀ (∂v/∂x) z] for any random z with E[z zᵀ] = I
            parts = [
                (torch.autograd.grad(out, x_phi, z.expand_as(out), retain_graph=True)[0] * z).sum(1) for z in directions
            ]
        return torch.cat([out.detach(), sum(parts)[:, None] / d], dim=1)

    start = torch.cat([x.flatten(1), torch.zeros_like(x.flatten(1)[:, :1])], dim=1)
    end, _ = integrate(joint, start, phis[1], phis[-1], tol)
    # log p_1(x_1) = log N(x_T; 0, I) + ∫ ∇·v dφ: what volume gains on the way, density loses
    return -0.5 * (end[:, :d].square().sum(1) + d * math.log(2 * math.pi)) + d * end[:, d]


def bits_per_dim(denoise, schedule, x_0, noise_like, *, tol=1e-3):
    """Bits per dimension that the model's density p_1 spends on pictures of 256 grey levels, x_0 = k / 127.5 - 1: (B,).

    Two gaps lie between a density and the bits of a file.  Under a density a single grey level has probability 0: so
    noise as wide as one level is added (u below), and by Jensen's inequality the mean of -log p over it is at least
    -log of the probability between this level's bounds.  And the network knows no level below 1: so p_1, what the ODE
    makes of noise when it stops there, is taken for the model of clean pictures, and asked at x_0 as it is.  The result
    bounds that model's code length from above; pictures sharper than level 1 pay for its blur.
    noise_like: the first draw dequantises, the second is the probe.
    """
    u = torch.special.ndtr(noise_like(x_0)) - 0.5  # Φ of a normal is uniform: from -1/2 to 1/2, in grey levels
    x = x_0 + u / 127.5
    # E_u log p(x_0 + Δu) + d log Δ ≤ log ∫ p over the bin, Δ = 1/127.5 wide in each of d dimensions (Jensen)
    # A probe of signs, z_i² = 1: the diagonal of ∂v/∂x adds no error to the estimate.
    nats = -log_likelihood(denoise, schedule, x, tol=tol, probe=noise_like(x_0).sign())
    return nats / (x_0[0].numel() * math.log(2)) + math.log2(127.5)
