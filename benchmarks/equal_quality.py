"""How much sooner does a better solver reach the same picture?

    python benchmarks/equal_quality.py

Pictures are drawn from the same noise by every level of the chain (DDIM, eta 0), and by each solver in fewer steps; the
error is how far the few are from the many, in grey levels.  DDIM's error falls evenly with its steps, so between two
of its counts one can read off how many it needs to be as near as another solver, and what those take by the clock.
Read first: ../diffusion/dpmpp.py.  ../benchmarks/convergence.py does the same where the exact answer is known.
"""

import math
import os
import sys
import time
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch

import cli
import machine
from diffusion.samplers import ddim, dpmpp, heun
from diffusion.steps import last, spaced_logsnr, spaced_rho
from lessons.lab import Lab, rms

WALKS = {  # name -> (sampler, levels of (lab, n)); DDIM over both kinds of levels, as either may suit it better
    "ddim": (ddim, lambda lab, n: lab.spaced(n)),
    "ddim --spacing logsnr": (ddim, lambda lab, n: spaced_logsnr(lab.schedule, n)),
    "dpmpp": (dpmpp, lambda lab, n: spaced_logsnr(lab.schedule, n)),
    "heun": (heun, lambda lab, n: spaced_rho(lab.schedule, n)),
}
EULER = ("ddim", "ddim --spacing logsnr")


def draw(lab, numbers, sampler, levels):
    """Pictures with these numbers at the end of the walk, and the seconds that it took."""
    (x, noise_like), y = lab.begin(numbers), lab.labels(None, numbers)
    start = time.perf_counter()
    with torch.no_grad():
        x = last(sampler(lab.denoiser(y), lab.schedule, x, timesteps=levels, noise_like=noise_like))
    x.sum().item()  # wait for the device
    return x.clamp(-1, 1), time.perf_counter() - start


def as_near(error, curve):
    """(steps, seconds) at which `curve`, [(steps, error, seconds), ...], falls to `error`; None where it never does.

    Straight lines between the measured points, in the logarithms of all three.
    """
    for (n, e, s), (n_next, e_next, s_next) in pairwise(curve):
        if e >= error >= e_next:
            share = math.log(e / error) / math.log(e / e_next)
            return n * (n_next / n) ** share, s * (s_next / s) ** share
    return None


def main(argv):
    p = cli.Parser(prog="equal_quality.py", description=__doc__.split("\n")[0])
    cli.add_checkpoint(p)
    p.add_argument("-n", type=cli.whole(1), default=16, help="pictures (default 16)")
    p.add_argument("--full", type=cli.whole(1), help="levels of the full chain (default: all)")
    args = p.parse_args(argv)
    path = cli.find_checkpoint(args.ckpt, args.preset)
    lab = Lab.open(path, machine.use_device(args.device), args.weights, args.seed)
    numbers, load = range(args.n), os.getloadavg()[0]
    full = cli.check_level("--full", args.full or lab.T, lab.T, low=11)  # one more than the fewest steps measured
    draw(lab, numbers, ddim, lab.spaced(1))  # the first call is slow
    goal, seconds = draw(lab, numbers, ddim, lab.spaced(full))
    print(f"{os.path.relpath(path)}: {args.n} pictures, guidance {lab.config.sample.guidance:g}")
    print(f"{full} steps of ddim: {seconds:.1f} s")
    curves = {}
    for name, (sampler, levels) in WALKS.items():
        counts = (10, 15, 20, 25, 30, 50) if sampler is not ddim else (10, 25, 50, 100, 200, 400)
        for n in (c for c in counts if c < full):
            x, seconds = draw(lab, numbers, sampler, levels(lab, n))
            error = rms(x - goal).mean().item() * 127.5
            curves.setdefault(name, []).append((n, error, seconds))
    print("| solver | steps | error, grey levels | seconds | ddim needs steps | seconds | times as long |")
    print("|---|---|---|---|---|---|---|")
    for name, curve in curves.items():
        for n, error, seconds in curve:
            found = [as_near(error, curves[k]) for k in EULER if name not in EULER]
            best = min((f for f in found if f), key=lambda f: f[1], default=None)  # by the levels that suit DDIM
            than = f"{best[0]:.0f} | {best[1]:.2f} | {best[1] / seconds:.1f}" if best else "| |"
            print(f"| {name} | {n} | {error:.2f} | {seconds:.2f} | {than} |")
    print(f"load {load:.1f} before, {os.getloadavg()[0]:.1f} after")


if __name__ == "__main__":
    sys.exit(cli.run(main))
