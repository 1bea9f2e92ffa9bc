"""In which terms are pictures compared?

An extractor turns uint8 pictures into feature vectors.  `inception` is the standard one and the only one whose
distances are called FID and KID; its weights must be fetched once.  The other two need nothing: `random` is an
untrained convolutional network, always the same, that sees colours and textures; `pixels` is the thumbnail itself.
Read next: frechet.py and kernel.py, which compare the features.
"""

import contextlib
import hashlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from config import UserError

NAMES = ("inception", "random", "pixels")
URL = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"


@dataclass(frozen=True)
class Extractor:
    """name: one of NAMES.  digest: SHA-256 of its weights.  function: (B, 3, H, W) uint8 -> (B, d) float."""

    name: str
    digest: str
    function: Callable

    def __call__(self, pictures):
        """Features (B, d) float32 on the CPU of uint8 pictures (B, 3, H, W); `pictures.rgb` makes such of any."""
        return self.function(pictures).float().cpu()


def extractor(name, device="cpu", weights_file=None):
    """The Extractor called `name`.  weights_file: Inception's weights, instead of downloading them once.

    Raises UserError if the package or the weights that it needs are missing.
    """
    if weights_file is not None and name != "inception":
        raise UserError(f"--weights-file: the features {name!r} have no weights; leave it out")
    make = {"inception": lambda: _inception(device, weights_file), "random": lambda: _random(device), "pixels": _pixels}
    return make[name]()


def _pixels():
    def function(pictures):
        return F.adaptive_avg_pool2d(pictures.float() / 255, 8).flatten(1)  # (B, 192)

    return Extractor("pixels", hashlib.sha256(b"8x8 means").hexdigest(), function)


def _random(device):
    """Three layers of fixed random 3x3 filters; mean and deviation of every channel over the picture: (B, 224)."""
    rng, digest, weights = np.random.default_rng(0), hashlib.sha256(), []
    for narrow, wide in pairwise((3, 16, 32, 64)):
        weight = rng.standard_normal((wide, narrow, 3, 3), dtype=np.float32) * np.float32((2 / (9 * narrow)) ** 0.5)
        digest.update(weight.tobytes())
        weights.append(torch.from_numpy(weight).to(device))

    def function(pictures):
        if max(pictures.shape[2:]) <= 4:  # one pixel in the last layer, which has no deviation
            raise UserError("the random features need pictures of more than 4 pixels a side; take those called pixels")
        x, found = pictures.to(device).float() / 127.5 - 1, []
        for weight in weights:
            x = F.conv2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), weight).relu()
            found += [x.mean(dim=(2, 3)), x.std(dim=(2, 3))]
            x = F.avg_pool2d(x, 2, ceil_mode=True)
        return torch.cat(found, dim=1)

    return Extractor("random", digest.hexdigest(), function)


def _inception(device, weights_file):
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError:
        raise UserError(
            "the standard features need the package torch-fidelity: pip install torch-fidelity, "
            "or compare by the features called random, which need nothing"
        ) from None
    file = None if weights_file is None else Path(weights_file)
    if file is not None and not file.is_file():
        raise UserError(f"--weights-file {file}: no such file; fetch {URL}")
    try:
        with contextlib.redirect_stdout(sys.stderr):  # stdout is for results
            # The package would run what is in the file; so it is read as data first, the download by its checksum.
            if file is None:
                torch.hub.load_state_dict_from_url(URL, map_location="cpu", check_hash=True, weights_only=True)
            else:
                torch.load(file, map_location="cpu", weights_only=True)
            network = FeatureExtractorInceptionV3(
                "inception-v3-compat", ["2048"], feature_extractor_weights_path=None if file is None else str(file)
            )
    except Exception as error:  # no network, a cut download, another file: to the user it is one thing
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:120]
        raise UserError(
            f"Inception's weights could not be loaded ({reason}): fetch {URL} and give it by --weights-file PATH, "
            "or compare by the features called random, which need nothing"
        ) from None
    digest = hashlib.sha256()
    for value in network.state_dict().values():
        digest.update(value.cpu().numpy().tobytes())
    network = network.to(device).eval().requires_grad_(False)
    return Extractor("inception", digest.hexdigest(), lambda pictures: network(pictures.to(device))[0])
