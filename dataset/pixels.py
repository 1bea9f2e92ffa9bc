"""What is a pixel to the network?  The only file that knows the convention: bytes 0..255 are numbers from -1 to 1."""

import torch


def from_uint8(k):
    """uint8 tensor -> float32 in [-1, 1]: 0 -> -1, 255 -> 1."""
    return k.float() / 127.5 - 1.0


def to_uint8(x):
    """float tensor -> uint8, rounded to the nearest grey level and clamped, the inverse of `from_uint8`.

    Truncating instead would darken the picture and map a quarter of all grey levels wrongly.
    """
    return ((x + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)
