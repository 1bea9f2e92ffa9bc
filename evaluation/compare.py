"""What is the distance of two sets of pictures, under names that promise no more than they hold?

For a trainer and for evaluate.py alike.  Read next: frechet.py, kernel.py.
"""

import torch

from evaluation.features import extractor
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


def compare_features(x, y, features):
    """Both distances of the features x (m, d) and y (n, d): {"fid": .., "kid": .., "kid_std": ..} or as `names` has it.

    KID's figures are the mean and deviation over random subsets.
    """
    distance, kernel = names(features)
    mean, std, size = kernel_distance(x, y)
    return {
        distance: frechet(*moments(x), *moments(y)),
        kernel: mean,
        f"{kernel}_std": std,
        f"{kernel}_subset": size,
    }


def compare(pictures, reference, features="random", device="cpu", batch=256):
    """The distances of `pictures` and `reference`, both uint8 (N, C, H, W), N >= 2: a dictionary of numbers."""
    see = extractor(features, device)
    with torch.no_grad():
        x, y = (torch.cat([see(part) for part in images.split(batch)]) for images in (pictures, reference))
    return compare_features(x, y, features)
