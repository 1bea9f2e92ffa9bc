"""How does one corner of the picture learn what another is doing?

A convolution sees its neighbours only.  Attention lets every pixel take a weighted average over all N pixels:
softmax attention (Vaswani et al. 2017) at a cost of N², linear attention (Katharopoulos et al. 2020) at a cost of N,
by doing the sum over the keys before the queries come in.  Read next: unet.py, which says where each is used.

Letters: B batch, C channels, H height, W width, N = H*W pixels, d = C / heads.
"""

import torch
import torch.nn.functional as F
from torch import nn

from models.blocks import group_norm, zero_init


def phi(x):
    """Features of queries and keys: any real numbers -> positive ones of the same shape."""
    # φ(x) = elu(x) + 1 = max(x, 0) + e^min(x, 0)                                   Katharopoulos et al. 2020 Eq. (7)
    # Not as elu(x) + 1, which rounds to 0 below -17; e^x, too, is kept above 0: a query of zeros would divide by 0.
    return x.relu() + x.clamp(min=-30, max=0).exp()


def linear_attention(q, k, v):
    """Attention without the N x N matrix: (B, heads, N, d) each -> (B, heads, N, d).

    Every output is a weighted mean of v: the weights φ(q_i)·φ(k_j) are positive and divided by their sum, so a
    constant v comes back unchanged.
    """
    dtype = v.dtype
    with torch.autocast(q.device.type, enabled=False):  # sums over N pixels overflow fp16 and starve bf16
        q, k, v = (z.float() if z.dtype in (torch.float16, torch.bfloat16) else z for z in (q, k, v))
        q, k = phi(q), phi(k)
        # out_i = (φ(q_i) Σ_j φ(k_j) v_jᵀ) / (φ(q_i)·Σ_j φ(k_j))                      Katharopoulos et al. 2020 Eq. (5)
        context = k.transpose(-2, -1) @ v  # (B, heads, d, d)  the sum over N comes first
        normaliser = q @ k.sum(dim=-2, keepdim=True).transpose(-2, -1)  # (B, heads, N, 1)
        return (q @ context / normaliser).to(dtype)


class Attention(nn.Module):
    """x + proj(attention(norm(x))): (B, C, H, W) -> (B, C, H, W).  `linear` chooses the kind.

    The residual and the zero-initialised projection make it the identity at first, so it can do no harm.
    """

    def __init__(self, channels, heads=1, linear=False):
        super().__init__()
        self.heads = heads
        self.attend = linear_attention if linear else F.scaled_dot_product_attention  # softmax(q kᵀ / √d) v
        self.norm = group_norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = zero_init(nn.Conv2d(channels, channels, 1))

    def heads_of(self, x):
        """q, k, v of x, each (B, heads, N, d)."""
        B, C, H, W = x.shape
        qkv = self.qkv(self.norm(x)).reshape(B, 3, self.heads, C // self.heads, H * W)
        return (z.transpose(-2, -1) for z in qkv.unbind(1))

    def forward(self, x):
        out = self.attend(*self.heads_of(x))  # (B, heads, N, d)
        return x + self.proj(out.transpose(-2, -1).reshape(x.shape))
