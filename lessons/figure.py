"""How should a picture that explains look?  One style for all lessons; a thumbnail's pixels stay whole squares.

`wall` lays pictures out in rows and columns at a whole-number scale and leaves room for plots below.
"""

import re
import warnings
from contextlib import contextmanager

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from dataset.pictures import grid, rgb, upscale
from dataset.pixels import to_uint8

DPI = 120
WIDTH = 1080  # pixels of a figure, about
GAP = 6  # pixels between pictures
INK, GREY, RULE = "#1f2933", "#616e7c", "#d9dee4"
COLOURS = ("#0b5fa5", "#d9541e", "#2a8c4a", "#8a3f9e", "#b58900", "#c2255c", "#0f8b8d")
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": GREY,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.prop_cycle": matplotlib.cycler(color=COLOURS),
    "grid.color": RULE,
    "grid.linewidth": 0.7,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "legend.frameon": False,
    "lines.linewidth": 2.0,
}


@contextmanager
def style():
    """Everything drawn inside looks alike."""
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a class may be named in any script
        yield


def visible(x):
    """(..., C, H, W) in [-1, 1] with 1, 3 or 4 channels -> (..., 3, H, W) uint8."""
    return rgb(to_uint8(x))


def mosaic(rows, k):
    """(R, K, C, H, W) in [-1, 1] -> (height, width, 3) uint8: pictures k times as large, GAP white pixels between."""
    images = upscale(visible(rows.cpu()), k).flatten(0, 1)
    return grid(images, columns=rows.shape[1], padding=GAP)[:, GAP:-GAP, GAP:-GAP].permute(1, 2, 0).numpy()


def blank(title, subtitle="", *, height, width=WIDTH):
    """An empty Figure of width x height pixels with a title."""
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    figure.text(24 / width, 1 - 22 / height, title, fontsize=13, fontweight="bold", va="center")
    figure.text(24 / width, 1 - 46 / height, subtitle, fontsize=9, color=GREY, va="center")
    return figure


def panel(figure, left, bottom, width, height):
    """Axes whose place is given in pixels from the lower left corner of the figure."""
    w, h = figure.get_size_inches() * DPI
    return figure.add_axes((left / w, bottom / h, width / w, height / h))


def longest(names):
    """Letters in the longest line of all the names; what mathtext adds does not count."""
    return max((len(re.sub(r"\\hat|[{}$_]", "", line)) for name in names for line in name.split("\n")), default=0)


def wall(rows, title, subtitle="", *, row_names=(), column_names=(), below=0, widest=110):
    """A Figure of pictures (R, K, C, H, W) in [-1, 1] under a title, each row and column named.

    below: pixels left free under the pictures, for plots.  widest: no picture becomes wider than this many pixels.
    """
    K, H, W = rows.shape[1], *rows.shape[-2:]
    left = 34 + 8 * longest(row_names)
    k = max(1, int(min((WIDTH - left - 24) / K - GAP, widest) // W))
    sheet = mosaic(rows, k)
    height, width = sheet.shape[:2]
    lines = max((name.count("\n") + 1 for name in column_names), default=0)
    top = 72 + 18 * lines
    words = max(13 * len(title), 7.9 * len(subtitle)) + 48  # pixels that the text takes, about
    total = int(max(left + width + 24, words, 700 if below else 0))
    figure = blank(title, subtitle, height=top + height + 18 + below, width=total)
    axes = panel(figure, left, below + 18, width, height)
    axes.imshow(sheet, interpolation="nearest", aspect="auto")  # pixel for pixel: the axes are as large as the sheet
    axes.set_xticks([(i + 0.5) * (W * k + GAP) - GAP / 2 - 0.5 for i in range(len(column_names))], column_names)
    axes.set_yticks([(i + 0.5) * (H * k + GAP) - GAP / 2 - 0.5 for i in range(len(row_names))], row_names)
    axes.tick_params(length=0, labelcolor=INK, labeltop=True, labelbottom=False, pad=5)
    axes.tick_params("x", labelsize=min(9, 1.05 * (W * k + GAP) / max(1, longest(column_names))))
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return figure


def save_png(file, figure):
    """Save a Figure as a small PNG."""
    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba())[..., :3]
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, format="PNG", optimize=True)
