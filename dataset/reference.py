"""Which real pictures is a model compared with, or asked to edit?

By default those of its own data source.  A model must not have seen what it is tested on: `unseen` gives the held-out
images, and textiles, which are drawn, new ones.  Which ones were held out follows from the number of images and the
seed: only while the data is what it was in training are they those, so another number of them is refused.
Read first: sources.py.
"""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from config import UserError
from dataset import folder, sources, textiles

SPLITS = ("train", "val", "all")


def load(data, split="train", trained_on=None):
    """The Images of config.Data `data` in one split: "train", "val" (held out) or "all".

    trained_on: how many of them a network was trained on, if that is known.  Raises UserError if they are as many no
    longer: then those held out are others now.
    """
    images = sources.load(data.source, size=data.size, channels=data.channels, count=data.count, seed=data.seed)
    if split == "all":
        return images
    train, val = sources.split(images, data.val_fraction, data.seed)
    if trained_on not in (None, len(train)):
        raise UserError(
            f"{images.name}: the data has changed: {len(train):,} training images, and the network was trained on "
            f"{trained_on:,}, so which it has not seen is not known; bring them back"
        )
    return images.take(train if split == "train" else val)


def unseen(data, n, trained_on=None):
    """Images that a model trained on `data` has not seen: at most n, taken evenly from what was held out.

    trained_on, errors: as in `load`.  Textiles are drawn from another seed, without those that differ from a training
    picture by their dye alone, about one in six of the default's.
    """
    if data.source != "textiles":
        return every(load(data, "val", trained_on), n)
    other = replace(data, count=2 * n, seed=data.seed + 1)
    plain, known = (textiles.draw(d.count, d.seed, d.size, dyed=False)[0] for d in (other, data))
    known = {picture.tobytes() for picture in known}
    new = [i for i, picture in enumerate(plain) if picture.tobytes() not in known]
    return load(other, "all").take(new[:n])


def every(images, n):
    """At most n of the images, evenly spread over all of them."""
    there = len(images.pixels)
    return images if n >= there else images.take(np.arange(n) * there // n)


def open_picture(path, size, channels):
    """One image file as uint8 (channels, H, W), fitted to size = (H, W) like the training data.  Or a UserError."""
    try:
        with Image.open(io.BytesIO(Path(path).read_bytes()), formats=folder.FORMATS) as image:
            ImageOps.exif_transpose(image, in_place=True)
            return folder.fit(image, size, channels)
    except OSError as error:
        if error.filename:
            raise UserError(f"{path}: {error.strerror}") from None
        raise UserError(f"{path}: not a readable image (PNG, JPEG, WebP, BMP or GIF)") from None
    except Image.DecompressionBombError:
        raise UserError(f"{path}: too many pixels; scale it down") from None
    except Exception:  # broken files raise nearly anything
        raise UserError(f"{path}: not a readable image (PNG, JPEG, WebP, BMP or GIF)") from None
