"""How does a run show itself?  Its metrics as a table and as curves, its pictures as grids, strips and a film.

Nothing here is needed to go on with it: metrics.csv and loss.png can be drawn again from what last.pth holds.
"""

import csv
import math

from dataset import pictures
from files import put, replacing

QUARTERS = ("val_q1", "val_q2", "val_q3", "val_q4")  # validation loss where t is in the first, ... last quarter of 1..T
COLUMNS = ("step", "epoch", "train_loss", "val_loss", *QUARTERS, "lr", "grad_norm", "skipped", "images_per_s")
STRIP = 8  # columns


def save_data(folder, images, size):
    """samples/data.png: as many of these images (N, C, H, W) uint8 as fill a square."""
    images = images[: math.isqrt(min(36, len(images))) ** 2]
    grid = pictures.grid(pictures.upscale(images, pictures.readable_scale(size)))
    put(folder / "samples" / "data.png", pictures.save_png, grid)


def save_samples(folder, step, images, stages, size):
    """A grid of the images, and the walk of the first one as a strip; returns both: {"step", "strip": (C, H', W')}.

    images: (N, C, H, W) uint8.  stages: list of (2, C, H, W) uint8, x_t and x0-hat on its way.
    """
    scale = pictures.readable_scale(size)
    columns = [stages[i] for i in pictures.evenly(0, len(stages) - 1, STRIP)]
    drawn = {
        "step": pictures.grid(pictures.upscale(images, scale)),
        "strip": pictures.strip([pictures.upscale(stage, scale) for stage in columns]),
    }
    for name, picture in drawn.items():
        put(folder / "samples" / f"{name}_{step:07d}.png", pictures.save_png, picture)
    return drawn


def animate_strips(folder):
    """samples/strips.gif: the strips of all evaluations one after the other, so that one sees it learn."""
    frames = [pictures.load_png(p) for p in sorted((folder / "samples").glob("strip_*.png"))]
    frames = [f for f in frames if f.shape == frames[-1].shape]  # a resumed run may have changed sample.steps
    if frames:  # the user may have tidied them away
        with replacing(folder / "samples" / "strips.gif") as temp:
            pictures.save_gif(temp, frames, milliseconds=600)


def write_metrics(folder, rows):
    """metrics.csv and loss.png.  rows: one dictionary an evaluation, with COLUMNS and maybe distances."""
    with replacing(folder / "metrics.csv") as temp, open(temp, "w", newline="") as file:
        more = dict.fromkeys(name for row in rows for name in row if name not in COLUMNS)
        table = csv.DictWriter(file, (*COLUMNS, *more))  # a row without a distance leaves the field empty
        table.writeheader()
        table.writerows(rows)
    if rows:
        put(folder / "loss.png", plot, rows)


def plot(path, rows):
    """Loss curves of the whole run, and validation by quarter of t, as a PNG."""
    from matplotlib.figure import Figure  # here, as its import takes long
    from matplotlib.ticker import LogLocator, NullLocator

    steps = [r["step"] for r in rows]
    quarters = ("t in the first quarter (little noise)", "second", "third", "last (nearly all noise)")
    panels = {
        "loss": {"train_loss": "train", "val_loss": "validation (EMA)"},
        "validation loss by quarter of t": dict(zip(QUARTERS, quarters)),
    }
    distances = {name: name for name in rows[-1] if name not in COLUMNS}
    if distances:
        panels["distance of samples and data"] = distances
    width = 5 * len(panels)
    figure = Figure(figsize=(width, 4))
    # margins by hand: Matplotlib's own layouts take as long as all the drawing
    figure.subplots_adjust(left=0.65 / width, right=1 - 0.1 / width, bottom=0.26, top=0.93, wspace=0.19)
    for panel, (title, curves) in zip(figure.subplots(1, len(panels)), panels.items()):
        for key, label in curves.items():
            panel.plot(steps, [r.get(key, math.nan) for r in rows], marker="o", markersize=3, label=label)
        panel.set(title=title, xlabel="optimiser step")
        if not any(r.get(key, 1) <= 0 for key in curves for r in rows):  # as an unbiased kernel distance may be
            panel.set_yscale("log")
            panel.yaxis.set(major_locator=LogLocator(subs=(1, 2, 5)), minor_locator=NullLocator())
        panel.yaxis.set_major_formatter("{x:.4g}")
        panel.grid(alpha=0.3)
        panel.locator_params(axis="x", nbins=6)
        panel.legend(fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.16))  # covers no curve
    figure.savefig(path, format="png", dpi=110)
