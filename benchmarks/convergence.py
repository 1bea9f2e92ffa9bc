"""How many network evaluations does each solver need?  python benchmarks/convergence.py

In one dimension the probability-flow ODE preserves order, so it carries each quantile of p_t to the same quantile of
p_s.  For a mixture of two Gaussians, whose perfect network is a closed form, every error is therefore exact.
Prints a table and writes a plot.  The tests of the solvers use the same mixture.
"""

import math
import sys
from itertools import pairwise, zip_longest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

import cli
from diffusion.samplers import ddim, dpmpp, heun, ode
from diffusion.schedule import linear
from diffusion.steps import counted, spaced_logsnr, spaced_rho

WEIGHTS = torch.tensor([0.3, 0.7], dtype=torch.float64)
MEANS = torch.tensor([-0.6, 0.4], dtype=torch.float64)
STDS = torch.tensor([0.15, 0.3], dtype=torch.float64)
FINE = linear(4000, 2.5e-5, 0.005)  # so many levels that rounding to whole ones does not hide the order
START = torch.linspace(-2, 2, 41, dtype=torch.float64).reshape(1, 1, 1, 41)
SOLVERS = {  # name -> (sampler, levels)
    "ddim": (ddim, spaced_logsnr),
    "dpmpp": (dpmpp, spaced_logsnr),
    "heun": (heun, spaced_rho),
}


def mixture(schedule):
    """The perfect Denoise when each pixel is drawn from a mixture of Gaussians: E[x_0 | x_t]."""

    def denoise(x_t, t):
        ab = schedule.alpha_bar[t]
        at_t = (ab * STDS**2 + 1 - ab).sqrt()
        z = (x_t[..., None] - ab.sqrt() * MEANS) / at_t
        share = torch.softmax(WEIGHTS.log() - at_t.log() - z**2 / 2, -1)
        x0 = (share * (MEANS + ab.sqrt() * STDS**2 / at_t * z)).sum(-1)
        return x0, (x_t - ab.sqrt() * x0) / (1 - ab).sqrt()

    return denoise


def cdf(schedule, x, t):
    """P(x_t <= x) of the mixture at level t."""
    ab = schedule.alpha_bar[t]
    z = (x[..., None] - ab.sqrt() * MEANS) / (ab * STDS**2 + 1 - ab).sqrt()
    return (WEIGHTS * torch.special.ndtr(z)).sum(-1)


def transport(schedule, x, t, s):
    """Where the exact ODE carries x from level t to level s: the same quantile of p_s, by bisection."""
    quantile = cdf(schedule, x, t)
    low, high = torch.full_like(x, -8), torch.full_like(x, 8)
    for _ in range(60):
        middle = (low + high) / 2
        below = cdf(schedule, middle, s) < quantile
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (low + high) / 2


def measure(sampler, levels, schedule=FINE, **options):
    """(largest error, network evaluations) at the last of the levels, before the step to 0 that all solvers share."""
    denoise, calls = counted(mixture(schedule))
    *_, step, _ = sampler(denoise, schedule, START, timesteps=levels, **options)
    error = (step.x - transport(schedule, START, schedule.T, step.t)).abs().max().item()
    return error, len(calls)


def main(argv):
    parser = cli.Parser(prog="convergence.py", description=__doc__.split("\n")[0])
    parser.add_argument("--out", default="convergence.png", help="the plot (default convergence.png)")
    args = parser.parse_args(argv)
    cli.writable("--out", args.out, (".png", ".pdf", ".svg"))
    curves = {
        name: [measure(sampler, levels(FINE, n)) for n in (8, 16, 32, 64, 128, 256) if (name, n) != ("heun", 256)]
        for name, (sampler, levels) in SOLVERS.items()
    }
    curves["ode"] = [measure(ode, [FINE.T, 1], tol=tol) for tol in (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)]
    print(f"{'solver':<8}{'evaluations':>12}{'error':>10}{'order':>7}")
    for name, curve in curves.items():
        pairs = pairwise(curve) if name in SOLVERS else ()  # of one tolerance to the next, an order has no meaning
        order = [""] + [f"{math.log(a / b) / math.log(n / m):.2f}" for (a, m), (b, n) in pairs]
        for (error, evaluations), o in zip_longest(curve, order, fillvalue=""):
            print(f"{name:<8}{evaluations:>12}{error:>10.1e}{o:>7}")
    plot(curves, args.out)
    print(f"plot in {args.out}")


def plot(curves, path):
    """Error against network evaluations, with the slopes of orders 1 and 2."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.add_subplot()
    for (name, curve), marker in zip(curves.items(), "os^D"):
        error, evaluations = zip(*curve)
        axes.loglog(evaluations, error, marker=marker, markersize=5, label=name)
    for order, (n, start) in {1: (40, 0.35), 2: (40, 0.006)}.items():
        axes.loglog([n, 4 * n], [start, start / 4**order], color="0.55", linewidth=1, linestyle="--")
        axes.annotate(f"order {order}", (4 * n, start / 4**order), color="0.4", va="center", fontsize=9)
    axes.set_xticks([10, 20, 50, 100, 200, 500], ["10", "20", "50", "100", "200", "500"])
    axes.minorticks_off()
    axes.set(xlabel="network evaluations", ylabel="largest error", title="Error against the exact trajectory")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    sys.exit(cli.run(main))
