"""Can a walk repair its own mistakes?

A predictor steps to the next noise level, inexactly.  A corrector then stays on that level and takes some steps of
Langevin dynamics, whose resting state, for small steps, is the level's own distribution, whatever came before.  Song
et al. 2021 ("Score SDE") pair the two.  All they need is the score ∇ log p_t(x) = -ε̂ / √(1-ᾱ_t); see ode.py.
"""

import torch

from diffusion.ode import score
from diffusion.process import column, q_posterior
from diffusion.steps import Step, adjacent


@torch.no_grad()
def pc(denoise, schedule, x_T, *, timesteps=None, snr=0.16, corrector_steps=1, noise_like=torch.randn_like):
    """Predictor-corrector sampling of score SDEs: n + corrector_steps (n - 1) network evaluations for n levels.

    snr: r, length of a Langevin step relative to its noise, 0 <= r < 1.  A step of finite length is biased: where
    the standard deviation should be 1, it settles near 1 + r²/2.  The length is taken from the norms of one image and
    its noise, so it is too large for an image of a few numbers.  corrector_steps: 0 is `ddpm`, large variance.
    Raises ValueError for snr or corrector_steps outside these.
    """
    if not 0 <= snr < 1 or corrector_steps < 0:
        raise ValueError(f"snr must be from 0 to below 1, corrector_steps at least 0: {snr:g}, {corrector_steps}")
    x = x_T
    for t, s in adjacent(schedule, timesteps):
        x0, _ = denoise(x, t)
        # Deviation: the ancestral predictor in place of x_i = (2 - √(1-β)) x_{i+1} + β ∇ log p + √β z.  They agree to
        # first order in β, but β is not small when levels are skipped, nor at the end of the cosine schedule.
        mean, _ = q_posterior(schedule, x0, x, t, s)  # (x_t + β ∇ log p_t) / √(1-β)
        x = mean
        if s > 0:  # level 0 has no noise, hence no score to correct with
            x = mean + schedule.jump_beta(t, s).sqrt() * noise_like(x)  # predictor             Score SDE Alg. 3
            for _ in range(corrector_steps):
                x = langevin(denoise, schedule, x, s, snr, noise_like(x))
        yield Step(s, x, x0)


def langevin(denoise, schedule, x, t, snr, z):
    """One corrector step on level t with noise z: uphill along the score, and noise so that the summit is not the end.

    Deviation: norms are each image's own, not the mean of the batch, or an image would depend on its neighbours.
    """
    g = score(schedule, denoise(x, t)[1], t)
    # ε = 2 α (r ‖z‖ / ‖g‖)²: the pull ε g is then √α r times as long as the push √(2ε) z             Score SDE Alg. 5
    ratio = z.flatten(1).norm(dim=1) / g.flatten(1).norm(dim=1)
    step = column(2 * (1 - schedule.betas[t]) * (snr * ratio) ** 2, x)
    # On N(0, 1), whose score is -x, this is (1-ε) x + √(2ε) z, at rest at the variance 1 / (1 - ε/2): a little wide.
    return x + step * g + (2 * step).sqrt() * z  # corrector                                          Score SDE Alg. 3
