"""What does every lesson start from?  A trained network, its noise schedule, and pictures of the kind it knows.

Picture number i of a lesson starts from the same noise as picture number i of generate.py with the same seed.
Read next: noise.py (the way down), walks.py (the way back), between.py, network.py.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

import cli
import sampling
from config import UserError
from dataset import pictures, reference
from dataset.pixels import from_uint8
from diffusion.samplers import ddim
from diffusion.steps import last
from painter import Painter


@dataclass(frozen=True)
class Photos:
    """Real images, uint8: `train` (N, C, H, W) the network has seen, `val` it has not; and where they are from."""

    train: Tensor
    val: Tensor
    name: str


@dataclass(frozen=True)
class Lab(Painter):
    """A painter, the pictures that it knows, and what lessons ask again and again."""

    def named(self, y):
        """What to write beside pictures with the labels y, if they have any."""
        return [] if y is None else [self.classes[i] for i in y.tolist()]

    def denoiser(self, y=None, guidance=None, clip=True):
        """What the samplers call.  guidance: None takes the checkpoint's own.

        Raises UserError if there is nothing to guide by, or if the null class is needed and was never trained.
        """
        guidance = self.usual_guidance(guidance, y is not None)
        return self.diffusion.denoiser(self.model, y, guidance=guidance, clip=clip)

    def spaced(self, steps=None, sampler="ddim"):
        """The levels that a sampler visits in `steps` steps; None: as many as the checkpoint says."""
        steps = self.config.sample.steps if steps is None else steps
        cli.check_level("--steps", steps, self.T)
        return sampling.plan(self.schedule, steps, sampling.defaults(sampler, eta=0.0))[0]

    def draw(self, x, y=None, steps=None, guidance=None):
        """The pictures that DDIM without fresh noise makes of the noise x (B, C, H, W); y: their labels, if any."""
        return self.finished(last(ddim(self.denoiser(y, guidance), self.schedule, x, timesteps=self.spaced(steps))))

    def levels(self, chosen, count=9, low=0):
        """The levels t to show, rising: those `chosen`, or `count` of them spread evenly over low..T."""
        if not chosen:
            return pictures.evenly(low, self.T, count)
        for t in chosen:
            cli.check_level("--levels", t, self.T, low)
        return sorted(set(chosen))

    def photos(self, data=None):
        """The images that the checkpoint was trained on, or those in `data` (--data)."""
        own = self.config.data
        of = replace(own, source=data or own.source)
        train, val = (reference.load(of, split, None if data else self.trained_on) for split in ("train", "val"))
        return Photos(torch.from_numpy(train.pixels), torch.from_numpy(val.pixels), train.name)

    def photo(self, number, data=None, flag="--picture"):
        """Held-out image `number`, which came with `flag`, as a batch of one: (1, C, H, W) in [-1, 1]."""
        val = self.photos(data).val
        if number >= len(val):
            there = "is 1 held-out picture" if len(val) == 1 else f"are {len(val)} held-out pictures"
            raise UserError(f"{flag} {number}: there {there}, numbered from 0")
        return from_uint8(val[number : number + 1]).to(self.device)


def rms(difference):
    """Root of the mean square over all but the first dimension: how far apart two batches are, image by image."""
    return difference.flatten(1).square().mean(dim=1).sqrt()
