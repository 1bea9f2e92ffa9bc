"""How does the cost grow: with the batch, the resolution, T, the sampling steps, the processes?

    python benchmarks/scale.py

A narrow network (16 channels, 3 levels, attention at the lowest two) makes it a matter of minutes.  On a CPU, cost is
CPU time of one thread, which other programs on the machine hardly change.  Memory is what the work itself added to
its process.  Writes tables to stdout and assets/scale.png.  Read next: compare.py, which sets the speed against others.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

CHANNELS, MULTS = 16, (1, 2, 2)


def build(side, batch, attention="full", T=1000, device="cpu", folder="out"):
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
        linear_attention_resolutions=lower if attention == "linear" else (),
    )  # fmt: skip
    config = replace(config, model=model, data=replace(config.data, size=(side, side)))
    pixels = np.random.default_rng(0).integers(0, 256, (max(batch, 16), 3, side, side), dtype=np.uint8)
    everything = np.arange(len(pixels))
    return Trainer(config, Images(pixels, None, (), "noise"), everything, everything, folder, start(device))


def measure(what, side=32, batch=8, attention="full", T=1000, steps=1, device="cpu"):
    """{seconds, memory}: of one training step, or of DDIM sampling; run in a process of its own."""
    import torch

    if what != "process":
        torch.set_num_threads(1)
    trainer = build(side, batch, attention, T, device)
    gpu = trainer.device.type == "cuda"
    clock = time.perf_counter if gpu or what == "process" else time.process_time

    def work():
        if what == "sample":
            from diffusion.samplers import ddim, image_noise, spaced

            diffusion, noise = trainer.diffusion, image_noise(0, range(batch))
            x, levels = noise(torch.empty(batch, 3, side, side, device=trainer.device)), spaced(T, steps)
            for _ in ddim(diffusion.denoiser(trainer.ema.model), diffusion.schedule, x, timesteps=levels):
                pass
        else:
            for _ in range(steps):
                trainer.train_step()
        if gpu:
            torch.cuda.synchronize()

    before = 0 if gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    work()
    seconds = []
    for _ in range(3):
        start = clock()
        work()
        seconds.append(clock() - start)
    memory = (
        torch.cuda.max_memory_allocated()
        if gpu
        else 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    )
    return {"seconds": min(seconds), "memory": memory}


def ask(what, processes=1, **values):
    """measure() in a fresh process, or under torchrun in several."""
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    call = [__file__, "--worker", json.dumps({"what": what, **values})]
    command = [sys.executable, *call]
    if processes > 1:
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            f"--nproc-per-node={processes}",
            *call,
        ]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        return None  # did not fit, most likely
    return json.loads(lines[0])


def tables(device):
    """Each question as (title, name of x, [(x, {column: numbers})])."""
    common = {"device": device}
    yield "Batch", "images", [(b, {"train": ask("train", batch=b, **common)}) for b in (1, 2, 4, 8, 16, 32, 64)]
    yield (
        "Resolution",
        "pixels a side",
        [
            (s, {kind: ask("train", side=s, batch=2, attention=kind, **common) for kind in ("none", "linear", "full")})
            for s in (32, 64, 128, 256)
        ],
    )
    yield "Length of the chain", "T", [(T, {"train": ask("train", T=T, **common)}) for T in (100, 1000, 4000)]
    yield "Sampling steps", "steps", [(n, {"DDIM": ask("sample", steps=n, **common)}) for n in (5, 10, 25, 50, 100)]
    cores = os.cpu_count() if device == "cpu" else __import__("torch").cuda.device_count()
    counts = [p for p in (1, 2, 4, 8) if p <= cores]
    rows = [(p, {"train": ask("process", processes=p, batch=32, steps=5, **common)}) for p in counts]
    yield "Processes (batch of 32 shared, 5 steps, by the clock)", "processes", rows


def show(title, x_name, rows):
    columns = list(rows[0][1])
    print(f"\n**{title}**\n")
    print(f"| {x_name} | " + " | ".join(f"{c}, s | {c}, MiB" for c in columns) + " |")
    print("|---" * (1 + 2 * len(columns)) + "|")
    for x, found in rows:
        cells = [f"{v['seconds']:.3g} | {v['memory'] / 2**20:,.0f}" if v else "- | -" for v in found.values()]
        print(f"| {x} | " + " | ".join(cells) + " |", flush=True)


def plot(found, path):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 4, figsize=(15, 3.8), constrained_layout=True)
    batch, resolution, _, sampling = found[:4]
    panels = [
        (batch, "seconds", 1, "A training step, by batch"), (resolution, "seconds", 1, "... by resolution (batch 2)"),
        (resolution, "memory", 2**30, "Memory, by resolution (GiB)"), (sampling, "seconds", 1, "DDIM of 8 images"),
    ]  # fmt: skip
    for ax, ((_, x_name, rows), key, unit, title) in zip(axes, panels):
        for column in rows[0][1]:
            points = [(x, v[column][key] / unit) for x, v in rows if v[column]]
            ax.plot(*zip(*points), marker="o", label=f"{column} attention" if len(rows[0][1]) > 1 else None)
        ax.set_xscale("log", base=2)
        ax.set_yscale("log")
        ax.set(title=title, xlabel=x_name, ylabel="GiB" if key == "memory" else "seconds")
        ax.set_xticks([x for x, _ in rows], [str(x) for x, _ in rows])
        ax.grid(alpha=0.3)
        if len(rows[0][1]) > 1:
            ax.legend(fontsize=8)
    figure.savefig(path, dpi=100)


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--device", default="cpu")
    p.add_argument("--plot", default=str(ROOT / "assets" / "scale.png"))
    p.add_argument("--worker", help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.worker:
        result = measure(**json.loads(args.worker))
        if int(os.environ.get("RANK", 0)) == 0:
            print(json.dumps(result), flush=True)
        return
    found = []
    for title, x_name, rows in tables(args.device):
        show(title, x_name, rows)
        found.append((title, x_name, rows))
    plot(found, args.plot)


if __name__ == "__main__":
    main()
