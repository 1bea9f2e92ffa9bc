"""Does the model remember its training images?  What is asked, and why so: evaluation/nearest.py."""

import sys

import numpy as np
import torch

from dataset import pictures, reference
from evaluation import nearest as neighbours
from files import put
from measures.table import write_csv

SHOWN = 16  # samples in the figure of `nearest`


def nearest(subject, args, out):
    """The nearest training image of every sample, and whether samples are nearer to them than unseen images are."""
    group, steps = subject.group, subject.steps(args.steps, args.sampler)
    options = subject.options(args.sampler, steps, args.eta)
    data, trained_on = subject.config.data, subject.trained_on
    training = group.main_first(lambda: reference.load(data, "train", trained_on))
    unseen = group.main_first(lambda: reference.unseen(data, args.n, trained_on))
    n = min(args.n, len(unseen.pixels))
    if n < args.n and group.main:
        print(f"warning: only {n:,} unseen images are there, so {n:,} samples are drawn", file=sys.stderr)
    with subject.bar(n, "image") as bar:
        drawn = subject.each(n, lambda numbers: subject.draw(numbers, args.sampler, steps, args.eta)[0], bar)
    protocol = {
        "data": training.name, "training_n": len(training.pixels), "compared": n, "sampler": args.sampler,
        "steps": steps, **options, "guidance": subject.guidance,
    }  # fmt: skip
    if not group.main:
        return protocol, {}
    distances, index = (found[:, 0] for found in neighbours.nearest(drawn, training.pixels))
    real = torch.from_numpy(np.ascontiguousarray(unseen.pixels))
    distances_unseen = neighbours.nearest(real, training.pixels)[0][:, 0]
    found = neighbours.verdict(distances, distances_unseen)
    figures = {
        **found,
        "distance_of_samples": distances.median().item(),
        "distance_of_unseen": distances_unseen.median().item(),
        "closest_sample": distances.min().item(),
    }
    order = distances.argsort()[:SHOWN]  # the closest ones: where a copy would be
    pairs = torch.stack([drawn[order], torch.from_numpy(np.stack([training.pixels[i] for i in index[order]]))], dim=1)
    k = pictures.readable_scale(subject.config.data.size)
    put(out / "nearest.png", pictures.save_png, pictures.grid(pictures.upscale(pairs.flatten(0, 1), k), columns=8))
    write_csv(
        out / "nearest.csv", ("sample", "training_image", "distance"), zip(range(n), index.tolist(), distances.tolist())
    )
    print(f"nearest training image: {figures['distance_of_samples']:.1f} grey levels from samples (median), ", end="")
    print(f"{figures['distance_of_unseen']:.1f} from as many unseen images; {n:,} each")
    print(f"a sample is closer than an unseen image in {found['closer']:.0%} of pairs (50 % ± {found['error']:.0%})")
    print(f"{found['very_close']:.0%} of samples are closer than 95 % of the unseen images (expected 5 %)")
    if found["memorised"] is None:
        print(f"verdict   none: {n} samples and as many unseen images are too few; compare more, by -n")
    elif found["memorised"]:
        print("verdict   samples are closer to the training images than unseen ones are: copies, or smoother pictures")
    else:
        print("verdict   no sign of memorisation: samples are no closer to the training images than unseen images are")
    print(f"closest   {out}/nearest.png: pairs of a sample and its nearest training image")
    return protocol, figures
