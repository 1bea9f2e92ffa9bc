"""What is measured: a checkpoint that is ready to draw, and how its processes share the numbers of the pictures.

Every measure of this folder is a function (subject, args, out) -> (protocol, figures), two dictionaries which
evaluate.py writes into the folder `out`, where the measure's own files go, too.  Read next: distance.py.
"""

from dataclasses import dataclass

import torch
from tqdm import tqdm

import cli
import machine
import processes
import sampling
from dataset import pictures
from dataset.pixels import to_uint8
from diffusion.steps import last
from painter import Painter


@dataclass(frozen=True, kw_only=True)
class Subject(Painter):
    """A checkpoint ready to be measured, and how."""

    group: processes.Processes
    batch_size: int
    guidance: float
    precision: str  # of the network while it draws; all else is float32

    def steps(self, asked, sampler):
        """The number of noise levels: as asked for, or the run's own, also for `ddpm`: all T would take too long.

        A sampler that chooses its own steps goes straight to the picture when nothing is asked for.
        """
        usual = 1 if sampling.chooses_its_steps(sampler) else self.config.sample.steps
        return cli.check_level("--steps", asked or usual, self.T)

    def options(self, sampler, steps, eta):
        """{option: value} of a sampler: generate.py's defaults; eta as asked for, or None: the checkpoint's own.

        Raises UserError if this eta is too large for so many steps: ask before the work, which would be lost.
        """
        options = sampling.defaults(sampler, self.config.sample.eta if eta is None else eta)
        sampling.plan(self.schedule, steps, options)
        return options

    def bar(self, total, unit):
        """A progress bar on the first process."""
        hidden = None if self.group.main else True
        return tqdm(total=total, unit=unit, disable=hidden, dynamic_ncols=True, leave=False)

    def draw(self, numbers, sampler, steps, eta):
        """Pictures with these numbers, uint8 on the CPU, and the network evaluations of each.  Classes take turns."""
        timesteps, options = sampling.plan(self.schedule, steps, self.options(sampler, steps, eta))
        n = len(numbers)
        if hasattr(self.model, "_orig_mod"):  # compiled: a smaller last batch would be compiled anew
            numbers = [*numbers, *[numbers[-1]] * (self.batch_size - n)]
        _, walk, calls = self.walk(sampler, numbers, timesteps, options, guidance=self.guidance)
        with machine.autocast(self.device, self.precision):
            x_0 = self.finished(last(walk))
        return to_uint8(x_0[:n]).cpu(), len(calls)

    def each(self, n, work, bar=None):
        """work(batch of numbers) -> tensor, for the numbers 0..n-1 in shares of each process; all of it in order."""
        mine = list(range(self.group.rank, n, self.group.world))
        done = []
        for start in range(0, len(mine), self.batch_size):
            numbers = mine[start : start + self.batch_size]
            done.append(work(numbers))
            if bar is not None:
                bar.update(len(numbers) * self.group.world)
        shares = self.group.gather((mine, torch.cat(done) if done else None))
        order = torch.tensor([i for numbers, _ in shares for i in numbers]).argsort()
        return torch.cat([values for _, values in shares if values is not None])[order]

    def draw_features(self, n, extract, sampler, steps, eta, bar):
        """Features (n, d) of the pictures 0..n-1, and the most network evaluations that one of them took."""
        spent = []

        def work(numbers):
            drawn, evaluations = self.draw(numbers, sampler, steps, eta)
            spent.append(evaluations)
            return extract(pictures.rgb(drawn))

        return self.each(n, work, bar), max(self.group.gather(max(spent, default=0)))
