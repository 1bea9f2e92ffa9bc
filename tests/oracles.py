"""What the closed-form tests share: noise that is the same every time, and the perfect network of simple data."""

import torch

MU, STD = 0.3, 0.5


def normal(*shape, seed=0):
    """N(0, I) in float64, the same at every call."""
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def seeded(seed=1):
    """A `noise_like` for a sampler: fresh noise at each call, the same in each walk."""
    generator = torch.Generator().manual_seed(seed)
    return lambda x: torch.randn(x.shape, dtype=x.dtype, generator=generator)


def last(steps):
    """The last Step of a walk."""
    return list(steps)[-1]


def oracle(diffusion, x_0):
    """The perfect network, in the diffusion's own prediction, when the data is the single image x_0."""

    def model(x_t, t, y):
        ab = diffusion.schedule.alpha_bar[t].view(-1, 1, 1, 1)
        return diffusion.target(x_0, (x_t - ab.sqrt() * x_0) / (1 - ab).sqrt(), t)

    return model


def gaussian(schedule, mean=MU, std=STD):
    """The perfect Denoise when each pixel is N(mean, std²): the posterior mean E[x_0 | x_t]."""

    def denoise(x_t, t):
        ab = schedule.alpha_bar[t]
        x0 = mean + ab.sqrt() * std**2 / (ab * std**2 + 1 - ab) * (x_t - ab.sqrt() * mean)
        return x0, (x_t - ab.sqrt() * x0) / (1 - ab).sqrt()

    return denoise
