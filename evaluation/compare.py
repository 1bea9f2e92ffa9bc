"""What is the distance between two sets of pictures, under names that promise no more than they hold?

For a trainer and for evaluate.py alike.  Read next: frechet.py, kernel.py.
"""

import torch

from evaluation.frechet import frechet, moments
from evaluation.kernel import kernel_distance


def names(features):
    """Keys of the Frechet and of the kernel distance for these features: fid and kid, or what they are instead."""
    return ("fid", "kid") if features == "inception" else (f"frechet_distance_{features}", f"mmd2_{features}")


def titles(features):
    """The same for people."""
    if features == "inception":
        return "FID", "KID"
    return f"Frechet distance of {features} features", f"kernel distance (MMD²) of {features} features"


def frechet_figures(x, y, features):
    """Of the features x (m, d) and y (n, d): {"fid": ..}, or under its other name."""
    return {names(features)[0]: frechet(*moments(x), *moments(y))}


def kernel_figures(x, y, features):
    """{"kid": mean, "kid_std": deviation over random subsets, "kid_subset": their size}, or under its other name."""
    key = names(features)[1]
    return dict(zip((key, f"{key}_std", f"{key}_subset"), kernel_distance(x, y)))


def compare(pictures, reference, extract, batch=256):
    """The distances of `pictures` and `reference`, both uint8 (N, 3, H, W), N >= 2: a dictionary of numbers.

    extract: features.extractor(...), what is compared.
    """
    with torch.no_grad():
        x, y = (torch.cat([extract(part) for part in images.split(batch)]) for images in (pictures, reference))
    return {**frechet_figures(x, y, extract.name), **kernel_figures(x, y, extract.name)}
