"""What is the U-Net made of?

ResBlock, the only place where the noise level enters, and the two changes of resolution.  All as in DDPM (Ho et al.
2020, App. B), which took them from Wide ResNet and PixelCNN++, but for `scale_shift`, which is of Nichol & Dhariwal
2021 ("iDDPM").  Read next: unet.py, which stacks them.

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
    """(B, C_in, H, W) and the time embedding (B, D) -> (B, C_out, H, W).

    scale_shift: the embedding scales and shifts each channel after the second norm (iDDPM), instead of shifting it
    before (DDPM), where the norm then removes whatever shift the channels of a group have in common.
    """

    def __init__(self, in_channels, out_channels, emb_dim, dropout=0.0, scale_shift=False):
        super().__init__()
        self.norm1 = group_norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.scale_shift = scale_shift
        self.emb = nn.Linear(emb_dim, out_channels * (2 if scale_shift else 1))
        self.norm2 = group_norm(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zero_init(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        self.skip = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

    def forward(self, x, emb):
        h = self.conv1(F.silu(self.norm1(x)))  # (B, C_out, H, W)
        v = self.emb(F.silu(emb))[:, :, None, None]  # what the noise level has to say to each channel
        if self.scale_shift:
            w, b = v.chunk(2, dim=1)
            h = self.norm2(h) * (w + 1) + b  # GroupNorm(h) (w + 1) + b                                     iDDPM App. A
        else:
            h = self.norm2(h + v)
        h = self.conv2(self.dropout(F.silu(h)))
        return self.skip(x) + h


class Downsample(nn.Module):
    """(B, C, H, W) -> (B, C, H/2, W/2) by a strided convolution."""

    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x):
        return self.conv(x)


class Upsample(nn.Module):
    """(B, C, H, W) -> (B, C, 2H, 2W): copy each pixel, then convolve: a transposed one leaves a checkerboard."""

    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x):
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
