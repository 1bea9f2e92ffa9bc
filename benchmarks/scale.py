"""How does the cost grow: with the batch, the resolution, T, the sampling steps, the processes, checkpointing?

    python benchmarks/scale.py

A narrow network (16 channels, 3 levels, attention at the lowest two) makes it a matter of minutes.  On a CPU, cost is
CPU time of one thread, which other programs on the machine hardly change.  Memory is what the work itself added to
its process.  Writes tables to stdout and assets/scale.png.  Read next: compare.py, which sets the speed against others.
"""

import argparse
import json
import multiprocessing
import os
import resource
import subprocess
import sys
import time
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch

import cli
from config import UserError
from machine import choose_device

CHANNELS, MULTS = 16, (1, 2, 2)


def build(side, batch, attention="full", T=1000, device="cpu", grad_checkpoint=False):
    """A Trainer of the narrow network on noise images of side x side pixels."""
    import numpy as np

    from config import PRESETS, override
    from dataset.sources import Images
    from processes import start
    from trainer import Trainer

    lower = (side // 2, side // 4)  # attention at 1/2 and 1/4 of the side, whatever the side
    config = override(PRESETS["smoke"], {"train.batch_size": batch, "diffusion.T": T, "train.steps": 10**6})
    model = replace(
        config.model, channels=CHANNELS, channel_mults=MULTS, num_classes=0, mid_blocks=0,
        attention_resolutions=lower if attention == "full" else (),
        linear_attention_resolutions=lower if attention == "linear" else (), grad_checkpoint=grad_checkpoint,
    )  # fmt: skip
    config = replace(config, model=model, data=replace(config.data, size=(side, side)))
    pixels = np.random.default_rng(0).integers(0, 256, (max(batch, 16), 3, side, side), dtype=np.uint8)
    everything = np.arange(len(pixels))
    return Trainer(config, Images(pixels, None, (), "noise"), everything, everything, "out", start(device))


def measure(what, side=32, batch=8, attention="full", T=1000, steps=1, device="cpu", grad_checkpoint=False):
    """{seconds, memory}: of one training step, or of DDIM sampling; run in a process of its own."""
    if what != "process":
        torch.set_num_threads(1)
    trainer = build(side, batch, attention, T, device, grad_checkpoint)
    gpu = trainer.device.type == "cuda"
    clock = time.perf_counter if gpu or what == "process" else time.process_time

    def work():
        if what == "sample":
            from diffusion.samplers import ddim
            from diffusion.steps import begin, last, spaced

            diffusion = trainer.diffusion
            x_T, _ = begin(0, range(batch), (3, side, side), trainer.device)
            denoise = diffusion.denoiser(trainer.ema.model)
            last(ddim(denoise, diffusion.schedule, x_T, timesteps=spaced(T, steps)))
        else:
            for _ in range(steps):
                trainer.train_step()
        if gpu:
            torch.cuda.synchronize()

    before = torch.cuda.memory_allocated() if gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = []
    while len(seconds) < 2 or (len(seconds) < 4 and sum(seconds) < 3):  # the first is slower: its memory is fresh
        start = clock()
        work()
        seconds.append(clock() - start)
    memory = (
        torch.cuda.max_memory_allocated() - before
        if gpu
        else 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    )
    return {"seconds": min(seconds), "memory": memory}


def apart(work, *args, **values):
    """work(*args, **values) in a process of its own, so that its memory is its own: forked, which saves the imports."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as pool:
        return pool.submit(work, *args, **values).result()


def ask(*args, **values):
    """measure() in a process of its own; None if it did not fit into the memory."""
    try:
        return apart(measure, *args, **values)
    except (BrokenExecutor, MemoryError, RuntimeError) as error:
        if isinstance(error, BrokenExecutor) or cli.out_of_memory(error):  # the first: killed by the system
            return None
        raise


def ask_several(processes, **values):
    """measure() under torchrun, with one thread a process."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}",
        __file__, "--worker", json.dumps({"what": "process", **values, "device": values["device"].split(":")[0]}),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    return json.loads(lines[0]) if lines else None


def tables(device):
    """Each question as (title, name of x, how to get [(x, {column: numbers})])."""
    common = {"device": device}
    yield (
        "Batch (32 x 32 pixels, full attention)",
        "images",
        lambda: [(b, {"train": ask("train", batch=b, **common)}) for b in (1, 2, 4, 8, 16, 32, 64)],
    )
    yield (
        "Resolution (batch of 2)",
        "pixels a side",
        lambda: [
            (s, {kind: ask("train", side=s, batch=2, attention=kind, **common) for kind in ("none", "linear", "full")})
            for s in (32, 64, 128, 256)
        ],
    )
    yield (
        "Length of the chain (batch of 8)",
        "T",
        lambda: [(T, {"train": ask("train", T=T, **common)}) for T in (100, 1000, 4000)],
    )
    yield (
        "Sampling steps (8 images)",
        "steps",
        lambda: [(n, {"DDIM": ask("sample", steps=n, **common)}) for n in (5, 10, 25, 50, 100)],
    )
    counts = [p for p in (1, 2, 4, 8) if p <= (os.cpu_count() if device == "cpu" else apart(torch.cuda.device_count))]
    yield (
        "Processes (batch of 32 shared, 5 steps, by the clock)",
        "processes",
        lambda: [(p, {"train": ask_several(p, batch=32, steps=5, **common)}) for p in counts],
    )
    both = lambda s: {  # noqa: E731
        name: ask("train", side=s, attention="linear", grad_checkpoint=name == "on", **common) for name in ("off", "on")
    }
    title = "Gradient checkpointing (linear attention, batch of 8)"
    yield title, "pixels a side", lambda: [(s, both(s)) for s in (64, 128)]


def estimate():
    """ImageNet at 64 x 64 on paper: FLOPs counted without computing (device "meta"), the rest is arithmetic."""
    from torch.utils.flop_counter import FlopCounterMode

    from config import Model
    from models.unet import UNet

    model = Model(192, (1, 2, 3, 4), 3, attention_resolutions=(32, 16, 8), heads=3, num_classes=1000)
    with torch.device("meta"):
        network = UNet(model, 3, (64, 64))
        x, t = torch.empty(1, 3, 64, 64), torch.ones(1, dtype=torch.long)
        with FlopCounterMode(display=False) as counter:
            network(x, t, t).sum().backward()
    parameters, flops = sum(p.numel() for p in network.parameters()), counter.get_total_flops()
    images, batch, peak, share, link = 540_000 * 2048, 2048, 990e12, 0.3, 50e9
    print(f"\n{parameters:,} parameters, {flops / 1e9:.0f} GFLOP an image (forward and backward)\n")
    print("| GPUs | images/s | batch of 2,048, s | gradients on top if nothing hid them, s | 540,000 steps, days |")
    print("|---|---|---|---|---|")
    for gpus in (8, 64):
        rate = gpus * peak * share / flops
        # a ring sends 2 (n-1)/n of the gradients, 4 bytes each, through every GPU's link
        reduce = 2 * (gpus - 1) / gpus * 4 * parameters / (link if gpus > 8 else 9 * link)
        print(f"| {gpus} | {rate:,.0f} | {batch / rate:.2f} | {reduce:.3f} | {images / rate / 86400:.1f} |")


def show(title, x_name, rows):
    columns = list(rows[0][1])
    print(f"\n**{title}**\n")
    print(f"| {x_name} | " + " | ".join(f"{c}, s | {c}, MiB" for c in columns) + " |")
    print("|---" * (1 + 2 * len(columns)) + "|")
    for x, found in rows:
        cells = [f"{v['seconds']:.3g} | {v['memory'] / 2**20:,.0f}" if v else "- | -" for v in found.values()]
        print(f"| {x} | " + " | ".join(cells) + " |", flush=True)


def plot(found, path):
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullLocator

    figure = Figure(figsize=(15, 3.8), layout="constrained")
    batch, resolution, _, sampling = found[:4]
    panels = [
        (batch, "seconds", 1, "A training step, by batch"), (resolution, "seconds", 1, "... by resolution (batch 2)"),
        (resolution, "memory", 2**20, "Memory, by resolution"), (sampling, "seconds", 1, "DDIM of 8 images"),
    ]  # fmt: skip
    for ax, ((_, x_name, rows), key, unit, title) in zip(figure.subplots(1, 4), panels):
        for column in rows[0][1]:
            points = [(x, v[column][key] / unit) for x, v in rows if v[column]]
            ax.plot(
                *zip(*points),
                marker="o",
                label=f"{column} attention".replace("none", "no") if len(rows[0][1]) > 1 else None,
            )
        ax.set_xscale("log", base=2)
        ax.set_yscale("log")
        ax.set(title=title, xlabel=x_name, ylabel="MiB" if key == "memory" else "seconds")
        ax.yaxis.set(major_locator=LogLocator(subs=(1, 2, 5)), major_formatter="{x:g}", minor_locator=NullLocator())
        ax.set_xticks([x for x, _ in rows], [str(x) for x, _ in rows])
        ax.grid(alpha=0.3)
        if len(rows[0][1]) > 1:
            ax.legend(fontsize=8)
    figure.savefig(path, dpi=100)


def main(argv):
    p = cli.Parser(prog="scale.py", description=__doc__.split("\n")[0])
    p.add_argument("--device", default="cpu", metavar="NAME", help="auto, cpu, cuda or cuda:N (default cpu)")
    p.add_argument("--plot", default="scale.png", help="the plot (default scale.png)")
    p.add_argument("--only", metavar="TITLE", help="only the tables whose title begins like this; draws no plot")
    p.add_argument("--estimate", action="store_true", help="only the estimate for ImageNet-64 on many GPUs, on paper")
    p.add_argument("--worker", help=argparse.SUPPRESS)
    args = p.parse_args(argv)
    if args.worker:
        result = measure(**json.loads(args.worker))
        if int(os.environ.get("RANK", 0)) == 0:
            print(json.dumps(result), flush=True)
        return None
    if args.estimate:
        return estimate()
    device = str(apart(choose_device, args.device))  # a process that has looked at a GPU cannot be forked
    if args.only is None:
        cli.writable("--plot", args.plot, (".png", ".pdf", ".svg"))
    found = []
    for title, x_name, rows in tables(device):
        if title.lower().startswith((args.only or "").lower()):
            found.append((title, x_name, rows()))
            show(*found[-1])
    if not found:
        raise UserError(f"--only {args.only}: no table has a title that begins like this")
    if args.only is None:
        plot(found, args.plot)
    return None


if __name__ == "__main__":
    sys.exit(cli.run(main))
