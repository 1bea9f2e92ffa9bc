"""What is the U-Net made of?

ResBlock, the only place where the noise level enters, and the two changes of resolution.  All as in DDPM (Ho et al.
2020, App. B), which took them from Wide ResNet and PixelCNN++.  Read next: unet.py, which stacks them.

Letters: B batch, C channels, H height, W width, D channels of the time embedding.
"""

import math

import torch.nn.functional as F
from torch import nn


def zero_init(layer):
    """Start `layer` at exactly 0: a residual branch is then silent until it has learnt something."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def group_norm(channels):
    """GroupNorm with gcd(32, channels / 4) groups: the paper's 32 where channels is a multiple of 128, else fewer."""
    return nn.GroupNorm(math.gcd(32, max(1, channels // 4)), channels)


class ResBlock(nn.Module):
    """(B, C_in, H, W) and the time embedding (B, D) -> (B, C_out, H, W)."""

    def __init__(self, in_channels, out_channels, emb_dim, dropout=0.0):
        super().__init__()
        self.norm1 = group_norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.emb = nn.Linear(emb_dim, out_channels)
        self.norm2 = group_norm(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zero_init(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        self.skip = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

    def forward(self, x, emb):
        h = self.conv1(F.silu(self.norm1(x)))  # (B, C_out, H, W)
        h = h + self.emb(F.silu(emb))[:, :, None, None]  # each channel is shifted by the noise level
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return self.skip(x) + h


class Downsample(nn.Module):
    """(B, C, H, W) -> (B, C, H/2, W/2) by a strided convolution."""

    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x):
        return self.conv(x)


class Upsample(nn.Module):
    """(B, C, H, W) -> (B, C, 2H, 2W): copy each pixel, then convolve: a transposed convolution leaves checkers."""

    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x):
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
