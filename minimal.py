"""All of it on one page, with points in the plane for pictures:  python minimal.py

The functions that the large programs call, without their comforts: data, network, training, drawing.  In less than a
minute it learns a spiral and draws out/minimal.png, where noise becomes one.  Read next: diffusion/schedule.py.

Letters: B batch.  A point is (x, y), so x_0, x_t and eps are (B, 2) where they are (B, C, H, W) elsewhere.
"""

import math
import sys
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import nn

import cli
from diffusion.process import GaussianDiffusion
from diffusion.samplers import ddim
from diffusion.schedule import cosine
from diffusion.steps import spaced
from models.embedding import sinusoidal
from outputs import claimed

T = 100  # noise levels


def spiral(n):
    """The data: n points on a spiral, (n, 2)."""
    angle = 3.5 * math.pi * (0.05 + 0.95 * torch.rand(n, 1)).sqrt()
    return torch.cat([angle.cos(), angle.sin()], dim=1) * angle / 7


class Network(nn.Module):
    """Noisy points x_t (B, 2) and their level t (B,) -> its prediction (B, 2).  There are no labels, so y is None."""

    def __init__(self, width=128, time=32):
        super().__init__()
        self.time = time
        self.layers = nn.Sequential(
            nn.Linear(2 + time, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(),
            nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 2),
        )  # fmt: skip

    def forward(self, x_t, t, y=None):
        return self.layers(torch.cat([4 * x_t, sinusoidal(t, self.time)], dim=1))  # 4: so that small distances count


def train(steps=3000, batch=512, lr=2e-3):
    """A network that has learned to tell the spiral from the noise, and the process that it learned it on."""
    model, diffusion = Network(), GaussianDiffusion(cosine(T), prediction="v")
    optimizer = torch.optim.Adam(model.parameters(), lr)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr * (1 - step / steps)
        loss = diffusion.loss(model, spiral(batch)).mean()  # draws t and eps, makes x_t, compares with what model says
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model, diffusion


def draw(model, diffusion, n=1000, steps=50):
    """The walk of n points from noise to the spiral: a list of Steps (t, x, x0)."""
    denoise = diffusion.denoiser(model, clip=False)  # points may lie anywhere, pixels in [-1, 1]
    # eta 1: some fresh noise in every step, which mends what was guessed wrong before
    return list(ddim(denoise, diffusion.schedule, torch.randn(n, 2), timesteps=spaced(T, steps), eta=1.0))


def plot(walk, path):
    """Five stages of the walk side by side: the points, and where the network thinks they belong."""
    figure = Figure(figsize=(12, 2.6), layout="constrained")
    for i, axes in enumerate(figure.subplots(1, 5)):
        stage = walk[i * (len(walk) - 1) // 4]
        axes.scatter(*stage.x.T, s=2, label="$x_t$")
        axes.scatter(*stage.x0.T, s=1, alpha=0.3, label=r"$\hat x_0$")
        axes.set(title=f"t = {stage.t}", xlim=(-2.5, 2.5), ylim=(-2.5, 2.5), aspect="equal")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right", markerscale=4)
    figure.savefig(path, dpi=100)


def parser():
    """The command line, which has no options."""
    return cli.Parser(prog="minimal.py", description=__doc__.split("\n")[0])


def main(argv):
    """Run the program; returns the exit code."""
    parser().parse_args(argv)
    torch.set_num_threads(1)  # more would not make so small a network faster, and beside other work far slower
    torch.manual_seed(0)
    out = Path("out/minimal.png")
    with claimed(out.parent, {out.name}):
        plot(draw(*train()), out)
    print(out)
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
