"""What do generate.py, edit.py, the measures and the lessons have in common?  A checkpoint that is ready to draw.

What cannot be asked of it is refused here, in one line.  Picture i depends on (seed, i) only.  Read next: sampling.py.
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from config import Config, UserError, did_you_mean
from diffusion import variants
from diffusion.process import GaussianDiffusion
from diffusion.samplers import SAMPLERS
from diffusion.steps import begin, counted
from models import checkpoint


@dataclass(frozen=True)
class Painter:
    """model: a network, ready to sample.  classes: the names of its labels, maybe none.  step: how long it was trained.

    path: the checkpoint, for messages; digest: SHA-256 of what it held.  weights: which of its two networks, "ema" |
    "raw".  seed: of all noise.  trained_on: how many pictures it was trained on, None if the checkpoint does not say.
    """

    model: torch.nn.Module
    config: Config
    diffusion: GaussianDiffusion
    classes: tuple[str, ...]
    device: torch.device
    path: Path | str = "this checkpoint"
    step: int = 0
    weights: str = "ema"
    seed: int = 0
    digest: str = ""
    trained_on: int | None = None

    @classmethod
    def open(cls, path, device="cpu", weights="ema", seed=0, compiled=False):
        """The painter of a checkpoint.  Raises UserError, naming the file, if it is not one."""
        model, config, state = checkpoint.load_model(path, device, weights)
        digest = checkpoint.digest(path)  # now: a training may replace the file while pictures are drawn
        names = state["classes"] or [str(i) for i in range(config.model.num_classes)]
        model = torch.compile(model) if compiled else model
        diffusion = variants.from_config(config.diffusion).to(device)
        step, device = state["step"], torch.device(device)
        trained_on = state.get("train_images")
        trained_on = trained_on if type(trained_on) is int else None
        return cls(model, config, diffusion, tuple(names), device, path, step, weights, seed, digest, trained_on)

    @property
    def origin(self):
        """Which checkpoint it is, in words."""
        return f"{self.path}: preset {self.config.name}, step {self.step:,}, {self.weights} weights"

    @property
    def schedule(self):
        """The noise levels."""
        return self.diffusion.schedule

    @property
    def T(self):
        """Number of noisy levels."""
        return self.schedule.T

    def find_label(self, text):
        """The label that --label names: a number, None for the null class, or "each", without one, for all in turn.

        Raises UserError for a class that the model does not know.
        """
        if not self.classes:
            if text not in (None, "none"):
                raise UserError(f"{self.path}: --label {text}: the model has no classes; leave it out")
            return None
        if text in (None, "none"):
            return None if text else "each"
        if text in self.classes:
            return self.classes.index(text)
        if text.isdecimal() and int(text) < len(self.classes):
            return int(text)
        names = ", ".join(f"{i} {c}" for i, c in enumerate(self.classes[:20]))
        more = ", ..." if len(self.classes) > 20 else ""
        known = f"there are 0 to {len(self.classes) - 1}: {names}{more}"
        raise UserError(f"{self.path}: --label {text}: unknown{did_you_mean(text, self.classes)}; {known}")

    def labels(self, text, numbers):
        """(B,) labels of the pictures with these numbers, or None for none.  text: as in `find_label`."""
        label = self.find_label(text)
        if label is None:
            return None
        given = [i % len(self.classes) if label == "each" else label for i in numbers]
        return torch.tensor(given, device=self.device)

    def usual_guidance(self, asked, labelled):
        """The guidance `asked` for; None: the checkpoint's own, or 1 where the pictures are not `labelled`.

        Raises UserError if there is nothing to guide by, or if the null class is needed and was never trained.
        """
        if not labelled:
            if asked is not None:
                classless = "the model has no classes, so there is nothing to guide by; leave it out"
                why = "there is nothing to guide by without a class; give one with --label NAME"
                raise UserError(f"{self.path}: --guidance: {why if self.classes else classless}")
            self.check_null_class("give --label NAME, or take another --ckpt")
            return 1.0
        guidance = self.config.sample.guidance if asked is None else asked
        if guidance != 1:
            self.check_null_class("leave --guidance out, or take another --ckpt")
        return guidance

    def check_null_class(self, advice):
        """Raise UserError, with this advice, if the null class was never trained: its part of the network is random."""
        if self.classes and self.config.train.label_dropout == 0:
            raise UserError(f"{self.path} never saw a picture without its label (train.label_dropout 0): {advice}")

    def begin(self, numbers, seed=None):
        """(x_T, noise_like): where the pictures with these numbers begin, and the draws to come."""
        shape = (self.config.data.channels, *self.config.data.size)
        return begin(self.seed if seed is None else seed, numbers, shape, self.device)

    def walk(self, sampler, numbers, timesteps, options, *, label=None, guidance=1.0, clip=True):
        """How the pictures with these numbers come out of the noise: (x_T, the Steps from there, the levels at which
        the network was asked so far).

        sampler: a name in SAMPLERS.  timesteps, options: as `sampling.plan` returns them.  label: as in `find_label`.
        """
        x, noise_like = self.begin(numbers)
        y = self.labels(label, numbers)
        denoise, calls = counted(self.diffusion.denoiser(self.model, y, guidance=guidance, clip=clip))
        steps = SAMPLERS[sampler](denoise, self.schedule, x, timesteps=timesteps, noise_like=noise_like, **options)
        return x, steps, calls

    def finished(self, x):
        """The pictures x, at the end of a walk.  Raises UserError if one of their numbers is not finite."""
        if not torch.isfinite(x).all():
            raise UserError(f"{self.path}: the pictures are not finite; train again with a lower --train.lr")
        return x
