"""Where do the training images come from?

load() turns the name of a source, or a path, into one uint8 array; split() divides it in two.
Pixels stay uint8 here: scaling, flips and batches are the trainer's.  Read next: dataset/folder.py
(your own images) and dataset/textiles.py (images that are drawn, so that nothing need be downloaded).
"""

import contextlib
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from config import UserError, did_you_mean
from dataset import folder, huggingface

NAMES = ("textiles", "cifar10", "cifar10-cars")
AUTOMOBILE = 1  # the cars' class in CIFAR-10; 5,000 of its 50,000 training images


@dataclass(frozen=True)
class Images:
    """A data set in one array.

    pixels: uint8 (N, C, H, W), maybe a read-only np.memmap.  labels: int64 (N,), indices into classes,
    or None (then classes is empty).  name: for messages.  skipped: "relative/path: reason" of each
    file that looked like an image and was not usable.
    """

    pixels: np.ndarray
    labels: np.ndarray | None
    classes: tuple[str, ...]
    name: str
    skipped: tuple[str, ...] = ()

    def summary(self) -> str:
        """One line for people: "4,998 usable, 2 skipped: a.png (empty file), b.jpg (not an image)"."""
        usable = f"{len(self.pixels):,} usable"
        return f"{usable}, {len(self.skipped):,} skipped: {folder.listed(self.skipped)}" if self.skipped else usable

    def take(self, indices: np.ndarray) -> "Images":
        """Those with these indices, in this order."""
        labels = None if self.labels is None else self.labels[indices]
        return replace(self, pixels=self.pixels[indices], labels=labels)


def load(
    source: str, *, size: tuple[int, int], channels: int, count: int = 0, seed: int = 0, cache: Path | None = None
) -> Images:
    """Every image of a source, as size = (height, width) pixels in 1 (grey), 3 (RGB) or 4 (RGBA) channels.

    source: "textiles" (drawn: count images, from seed; the others ignore both), "cifar10" or
    "cifar10-cars" (downloaded once by torchvision into cache, by default ./data), "hf:NAME" (the Hugging
    Face Hub, or a folder that datasets.save_to_disk wrote), or else the path of
    a folder or .zip of images (decoded once into cache, by default ~/.cache/diffusion).  A name wins
    over a folder called the same; ./textiles is the folder.

    Raises UserError, one line, for a source that is unknown, empty, broken or out of reach.
    """
    if channels not in (1, 3, 4):
        raise UserError(f"channels must be 1 (grey), 3 (RGB) or 4 (RGB and alpha), not {channels}")
    if min(size) < 1:
        raise UserError(f"images need at least one pixel in height and in width, not {size[0]} x {size[1]}")
    if source == "textiles":
        return _textiles(size, channels, count, seed)
    if source in NAMES:
        return _cifar10(source, size, channels, Path("data") if cache is None else cache)
    if source.startswith("hf:"):
        pixels, labels, classes, skipped = huggingface.read(source[3:], size=size, channels=channels, cache=cache)
        return Images(pixels, labels, classes, source, skipped)
    path = os.path.abspath(os.path.expanduser(source))
    if not source or not os.path.exists(path):
        hint, accepted = did_you_mean(source.lower(), NAMES), f"{', '.join(NAMES)}, hf:NAME, or {folder.ACCEPTED}"
        raise UserError(
            f"no source is called {source!r} (from --data, else the preset's or the checkpoint's own), "
            f"and there is no {path}{hint}; accepted: {accepted}"
        )
    pixels, labels, classes, skipped = folder.read(Path(path), size=size, channels=channels, cache=cache)
    return Images(pixels, labels, classes, os.path.basename(path), skipped)


def split(images: Images, val_fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices (train, val) into images: int64, sorted, disjoint, together all of them; the same for a seed.

    val holds round(val_fraction N) images, but at least 1 and at most N - 1.  A single image is both:
    there is nothing else to validate on.  Raises UserError unless 0 < val_fraction < 1.
    """
    if not 0 < val_fraction < 1:
        raise UserError(f"the validation fraction must lie between 0 and 1, both excluded; not {val_fraction}")
    n = len(images.pixels)
    if n == 1:
        return np.array([0]), np.array([0])
    held_out = min(max(round(val_fraction * n), 1), n - 1)
    order = np.random.default_rng(seed).permutation(n)
    return np.sort(order[held_out:]), np.sort(order[:held_out])


def _textiles(size: tuple[int, int], channels: int, count: int, seed: int) -> Images:
    from dataset import textiles

    if count < 1:
        raise UserError(f"textiles are drawn, so their count must be at least 1, not {count}")
    pixels, labels = textiles.draw(count, seed, size)
    return Images(_convert(pixels, size, channels), labels, tuple(textiles.CLASSES), "textiles")


def _cifar10(source: str, size: tuple[int, int], channels: int, root: Path) -> Images:
    try:
        with contextlib.redirect_stdout(sys.stderr):  # torchvision prints; stdout is for results
            from torchvision.datasets import CIFAR10  # here, so that all other sources do without torchvision

            # torchvision compares checksums: what a broken download left behind is fetched anew.
            data = CIFAR10(str(root), train=True, download=True)
    except Exception as error:  # no network, no disk space, no torchvision, ...: to the user it is one thing
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(
            f"could not download CIFAR-10 into {root.absolute()} ({reason}). Without it: --data PATH takes "
            "a folder or zip of images, and plain `python main.py` draws its own"
        ) from error
    pixels, labels, classes = data.data.transpose(0, 3, 1, 2), np.array(data.targets, dtype=np.int64), data.classes
    if source == "cifar10-cars":  # one class is no class: nothing to condition on
        pixels, labels, classes = pixels[labels == AUTOMOBILE], None, ()
    return Images(_convert(pixels, size, channels), labels, tuple(classes), source)


def _convert(rgb: np.ndarray, size: tuple[int, int], channels: int) -> np.ndarray:
    """uint8 (N, 3, h, w) -> (N, channels, *size), by the very function that image files go through."""
    if rgb.shape[1:] == (channels, *size):
        return np.ascontiguousarray(rgb)
    out = np.empty((len(rgb), channels, *size), np.uint8)
    for i, image in enumerate(rgb.transpose(0, 2, 3, 1)):
        out[i] = folder.fit(Image.fromarray(np.ascontiguousarray(image)), size, channels)
    return out
