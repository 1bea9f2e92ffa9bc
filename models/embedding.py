"""How does a network learn which noise level it is looking at?

The timestep t is one integer; a network needs it as a smooth vector.  As in the Transformer (Vaswani et al. 2017,
Sec. 3.5), each pair of channels is a clock hand turning at its own speed: the fast ones tell neighbours apart, the
slow ones tell early from late.  Read next: blocks.py, where the vector enters every ResBlock.

Letters: B batch, D embedding channels.
"""

import math

import torch
from torch import nn


def sinusoidal(t, dim):
    """(B,) timesteps -> (B, dim) sines, then cosines.  dim must be even and at least 4."""
    half = dim // 2
    # ω_i = 10000^(-i / (half - 1)): geometric from 1 down to exactly 1/10000
    freqs = torch.exp(-math.log(10_000) * torch.arange(half, device=t.device) / (half - 1))  # (D/2,)
    angles = t[:, None].float() * freqs  # (B, D/2)
    return torch.cat([angles.sin(), angles.cos()], dim=1)  # (B, D)


class TimeEmbedding(nn.Module):
    """sinusoidal(t) through a two-layer MLP: (B,) -> (B, out_dim)."""

    def __init__(self, dim, out_dim):
        super().__init__()
        self.dim = dim
        self.mlp = nn.Sequential(nn.Linear(dim, out_dim), nn.SiLU(), nn.Linear(out_dim, out_dim))

    def forward(self, t):
        return self.mlp(sinusoidal(t, self.dim).to(self.mlp[0].weight.dtype))
