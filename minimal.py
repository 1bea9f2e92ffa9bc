"""All of it on one page, with points in the plane for pictures:  python minimal.py

Data, network, training, drawing: what the large programs do, without their comforts.  In less than a minute it learns
a spiral and draws out/minimal.png, where noise becomes one.  Read next: diffusion/schedule.py, which makes the tables.

Letters: B batch.  A point is (x, y), so x_0, x_t and eps are (B, 2) where they are (B, C, H, W) elsewhere.
"""

import math
import sys
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import nn

import cli
from diffusion.schedule import cosine
from diffusion.steps import Step, adjacent, spaced
from models.embedding import sinusoidal
from outputs import claimed

T = 100  # noise levels


def spiral(n):
    """The data: n points on a spiral, (n, 2)."""
    angle = 3.5 * math.pi * (0.05 + 0.95 * torch.rand(n, 1)).sqrt()
    return torch.cat([angle.cos(), angle.sin()], dim=1) * angle / 7


class Network(nn.Module):
    """Noisy points x_t (B, 2) and their levels t (B,) -> a guess of v (B, 2), a mixture of the noise and the data."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(2 + 32, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU(),
            nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, 2),
        )  # fmt: skip

    def forward(self, x_t, t):
        return self.layers(torch.cat([4 * x_t, sinusoidal(t, 32)], dim=1))  # 4: so that small distances count


def train(steps=3000, batch=512, lr=2e-3):
    """A network that has learned to tell the spiral from the noise, and the schedule that it learned it on."""
    model, schedule = Network(), cosine(T)
    signal, noise = schedule.signal.float(), schedule.noise.float()  # √ᾱ_t and √(1-ᾱ_t), (T+1,)
    optimizer = torch.optim.Adam(model.parameters(), lr)
    for _ in range(steps):
        x_0, t, eps = spiral(batch), torch.randint(1, T + 1, (batch,)), torch.randn(batch, 2)
        a, b = signal[t, None], noise[t, None]
        x_t = a * x_0 + b * eps
        v = a * eps - b * x_0  # why not eps: at T, where a is nearly 0, the guess of x_0 would have to divide by it
        loss = (v - model(x_t, t)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model, schedule


@torch.no_grad()
def draw(model, schedule, n=1000, steps=50):
    """The walk of n points from noise to the spiral: a list of Steps (t, x, x0)."""
    signal, noise = schedule.signal, schedule.noise
    x, walk = torch.randn(n, 2), []
    for t, s in adjacent(schedule, spaced(T, steps)):  # from level t to s < t
        v = model(x, torch.full((n,), t))
        # what the network takes for data and for noise, given that x = a x_0 + b eps, v = a eps - b x_0, a² + b² = 1
        x0, eps = signal[t] * x - noise[t] * v, noise[t] * x + signal[t] * v
        # the same two at level s, with a part of the noise drawn anew, which mends what was guessed wrong before: as
        # much of it as DDPM draws (schedule.py says why), where 0 would be DDIM
        fresh = schedule.posterior_variance(t, s)
        x = signal[s] * x0 + (noise[s] ** 2 - fresh).sqrt() * eps + fresh.sqrt() * torch.randn(n, 2)
        walk.append(Step(s, x, x0))
    return walk


def plot(walk, path):
    """Five stages of the walk side by side: the points, and the guess of the data that led to them."""
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
