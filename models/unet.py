"""Given a noisy picture and its noise level, what is noise and what is picture?  The U-Net that answers.

The encoder halves the resolution stage by stage and remembers every feature map; the decoder climbs back and is
handed those maps one by one, last first.  So the deep layers decide what the picture is about and the skips keep
where everything was.  The layout is that of DDPM (Ho et al. 2020, App. B); `UNet()` has the layers and parameters of
their CIFAR-10 network.  Read beside it: embedding.py, blocks.py, attention.py.
Read next: ../trainer.py, the loop that teaches it.

Letters: B batch, C image channels, H height, W width, D channels of the time embedding.
"""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from config import Model
from models.attention import Attention
from models.blocks import Downsample, ResBlock, Upsample, group_norm, zero_init
from models.embedding import TimeEmbedding


class Block(nn.Module):
    """A ResBlock, followed by attention where this resolution has it."""

    def __init__(self, in_channels, out_channels, emb_dim, config, resolution):
        super().__init__()
        self.res = ResBlock(in_channels, out_channels, emb_dim, config.dropout, config.scale_shift)
        full = resolution in config.attention_resolutions
        linear = resolution in config.linear_attention_resolutions
        self.attn = Attention(out_channels, config.heads, linear) if full or linear else nn.Identity()
        self.grad_checkpoint = config.grad_checkpoint

    def _forward(self, x, emb):
        return self.attn(self.res(x, emb))

    def forward(self, x, emb):
        if self.grad_checkpoint and self.training:  # keep only x; compute the rest again in the backward pass
            return checkpoint(self._forward, x, emb, use_reentrant=False)
        return self._forward(x, emb)


class UNet(nn.Module):
    """Image-to-image network conditioned on a timestep and, if config.num_classes > 0, on a class label.

    config: the sizes (config.Model).  image_channels: C.  size: (H, W) that it is built for; it decides only at which
    stages attention sits.  Any other H, W that are multiples of `size_multiple` (config.py) run as well.
    out_channels: of the output; None is C.
    """

    def __init__(self, config=Model(), image_channels=3, size=(32, 32), out_channels=None):  # noqa: B008 - it is frozen
        super().__init__()
        self.config = config
        channels = [config.channels * m for m in config.channel_mults]  # one entry a stage
        resolutions = [(min(size) // config.patch) >> stage for stage in range(len(channels))]
        decoder_blocks = config.decoder_blocks or (config.num_res_blocks + 1,) * len(channels)
        emb_dim = 4 * config.channels

        self.time_embedding = TimeEmbedding(config.channels, emb_dim)
        self.null_class = config.num_classes  # the row after the last label
        self.label_embedding = nn.Embedding(config.num_classes + 1, emb_dim) if config.num_classes else None
        self.stem = nn.Conv2d(image_channels * config.patch**2, channels[0], 3, padding=1)

        # Encoder.  skips[stage] lists the channels of the maps that this stage hands to the decoder.
        self.encoder, self.down = nn.ModuleList(), nn.ModuleList()
        skips, current = [], channels[0]  # channels of the feature map so far
        for stage, out in enumerate(channels):
            blocks, handed = nn.ModuleList(), [current]
            for _ in range(config.num_res_blocks):
                blocks.append(Block(current, out, emb_dim, config, resolutions[stage]))
                current = out
                handed.append(current)
            self.encoder.append(blocks)
            self.down.append(Downsample(current) if stage < len(channels) - 1 else nn.Identity())
            skips.append(handed)

        # Middle: ResBlocks, the first with attention after it.
        def middle(i):
            attention = Attention(current, config.heads) if i == 0 else nn.Identity()
            return nn.ModuleList([ResBlock(current, current, emb_dim, config.dropout, config.scale_shift), attention])

        self.middle = nn.ModuleList(middle(i) for i in range(config.mid_blocks))

        # Decoder, deepest stage first: each block takes one skip beside its input, the last one first; where there are
        # fewer blocks than skips, the first skips are not used.
        self.decoder, self.up = nn.ModuleList(), nn.ModuleList()
        for stage, out in reversed(list(enumerate(channels))):
            blocks = nn.ModuleList()
            for i in range(decoder_blocks[stage]):
                blocks.append(Block(current + skips[stage][-1 - i], out, emb_dim, config, resolutions[stage]))
                current = out
            self.decoder.append(blocks)
            self.up.append(Upsample(current) if stage else nn.Identity())

        self.norm = group_norm(current)
        self.head = zero_init(nn.Conv2d(current, (out_channels or image_channels) * config.patch**2, 3, padding=1))

    def forward(self, x, t, y=None):
        """x (B, C, H, W), t (B,) timesteps, y (B,) labels or None for the null class -> (B, out_channels, H, W)."""
        emb = self.time_embedding(t)  # (B, D)
        if self.label_embedding is not None:
            y = torch.full_like(t, self.null_class, dtype=torch.long) if y is None else y
            emb = emb + self.label_embedding(y)

        h = self.stem(F.pixel_unshuffle(x, self.config.patch))
        skips = []  # one list a stage
        for blocks, down in zip(self.encoder, self.down):
            maps = [h]
            for block in blocks:
                h = block(h, emb)
                maps.append(h)
            skips.append(maps)
            h = down(h)

        for res, attention in self.middle:
            h = attention(res(h, emb))

        for blocks, up, maps in zip(self.decoder, self.up, reversed(skips)):
            for block, skip in zip(blocks, reversed(maps)):  # last first
                h = block(torch.cat([h, skip], dim=1), emb)
            h = up(h)

        return F.pixel_shuffle(self.head(F.silu(self.norm(h))), self.config.patch)
