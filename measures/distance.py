"""How far are the drawn pictures from real ones, and how does that fall with the number of steps?

The distances are in evaluation/frechet.py and kernel.py, what they compare in evaluation/features.py.
"""

import hashlib
import sys
import time
from dataclasses import replace

import numpy as np
import torch

from config import UserError
from dataset import folder, pictures, reference
from evaluation import compare, features
from evaluation.frechet import frechet, moments
from evaluation.kernel import kernel_distance
from files import replacing
from measures.speed import settings
from measures.table import print_table, write_csv

ENOUGH = 2048  # images, as many as Inception has features: the covariance of fewer is far from full rank
UNSEEN = "unseen"  # names the row of `sweep` that no sampler has drawn


def fid(subject, args, out):
    """Frechet distance to real images; FID with the standard features."""
    warn_if_few(subject, args.n)
    found, real, protocol = both_features(subject, args)
    if not subject.group.main:
        return protocol, {}
    figures = compare.frechet_figures(found, real, args.features)
    distance = figures[compare.names(args.features)[0]]
    print(f"{compare.titles(args.features)[0]}: {distance:.5g}, {args.n:,} samples")
    return protocol, figures


def kid(subject, args, out):
    """Kernel distance to real images; KID with the standard features."""
    found, real, protocol = both_features(subject, args)
    if not subject.group.main:
        return protocol, {}
    figures = compare.kernel_figures(found, real, args.features)
    key, title = compare.names(args.features)[1], compare.titles(args.features)[1]
    mean, std, size = figures[key], figures[f"{key}_std"], figures[f"{key}_subset"]
    print(f"{title}: {mean:.5g} ± {std:.3g} over subsets of {size}, {args.n:,} samples")
    return protocol, figures


def both_features(subject, args):
    """Features (n, d) of exactly n samples, those (M, d) of the real images, and the protocol."""
    steps = subject.steps(args.steps, args.sampler)
    options = subject.options(args.sampler, steps, args.eta)
    extract = features.extractor(args.features, subject.device, args.weights_file)
    real, facts = real_features(subject, args, extract)
    with subject.bar(args.n, "image") as bar:
        found, _ = subject.draw_features(args.n, extract, args.sampler, steps, args.eta, bar)
    protocol = {
        **facts, "features": extract.name, "features_sha256": extract.digest,
        "sampler": args.sampler, "steps": steps, **options, "guidance": subject.guidance,
    }  # fmt: skip
    return found, real, protocol


def warn_if_few(subject, n):
    """The Frechet distance is too large by an amount that depends on the number of images."""
    if n < ENOUGH and subject.group.main:
        print(
            f"warning: {n:,} images are few for a Frechet distance, which is the larger the fewer there are "
            f"(below {ENOUGH:,} notably): compare only figures of the same n",
            file=sys.stderr,
        )


def sweep(subject, args, out):
    """Distance to real images against the number of steps, for every sampler, and of unseen images: table and plot."""
    compared, eta, told = settings(subject, args)
    extract = features.extractor(args.features, subject.device, args.weights_file)
    warn_if_few(subject, args.n)
    real, facts = real_features(subject, args, extract)
    unseen = unseen_features(subject, args, extract)
    frechet_name, kernel_name = compare.names(extract.name)
    rows, of_real = [], moments(real)

    def distances(found):
        return frechet(*moments(found), *of_real), *kernel_distance(found, real)[:2]

    with subject.bar(len(compared) * args.n, "image") as bar:
        for sampler, steps in compared:
            start = time.perf_counter()
            found, evaluations = subject.draw_features(args.n, extract, sampler, steps, eta, bar)
            seconds = time.perf_counter() - start
            if subject.group.main:
                rows.append((sampler, steps, evaluations, *distances(found), seconds))
    protocol = {**facts, "features": extract.name, "features_sha256": extract.digest, **told}
    if subject.group.main:
        if unseen is not None:
            rows.append((UNSEEN, "", "", *distances(unseen), ""))
        header = ("sampler", "steps", "evaluations", frechet_name, kernel_name, f"{kernel_name}_std", "seconds")
        write_csv(out / "sweep.csv", header, rows)
        print_table(header, rows)
        plot_sweep(out / "sweep.png", rows, compare.titles(extract.name)[0], args.n)
        print(f"plot      {out}/sweep.png")
    return protocol, {frechet_name: {f"{r[0]}_{r[1]}".rstrip("_"): r[3] for r in rows}}


def plot_sweep(path, rows, title, n):
    """Distance against network evaluations, one line a sampler, both axes logarithmic; unseen images are a level."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for name in dict.fromkeys(r[0] for r in rows):
        line = sorted((r[2], r[3]) for r in rows if r[0] == name)
        if name == UNSEEN:
            axes.axhline(line[0][1], color="0.4", linestyle="--", label="unseen real images")
        else:
            axes.plot(*zip(*line), marker="o", label=name)
    axes.set(xscale="log", yscale="log", xlabel="network evaluations a picture", ylabel=f"{title}, {n:,} samples")
    ticks = sorted({r[2] for r in rows if r[0] != UNSEEN})
    axes.grid(alpha=0.3, which="both")
    axes.set_xticks([t for i, t in enumerate(ticks) if i == 0 or t >= 1.25 * ticks[i - 1]])
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    axes.legend()
    with replacing(path) as temp:
        figure.savefig(temp, format="png", dpi=120)


# ---------------------------------------------------------------- features of the real images


def cached(path, group, compute):
    """What compute() gives, a tensor, or from this file if it is there and whole; every process gets it."""
    found = read_features(path)
    if all(group.gather(found is not None)):  # together, or some would wait for the others for ever
        return found
    found = compute()
    if group.main:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as temp, open(temp, "wb") as file:
                np.save(file, found.numpy())
        except (OSError, UserError) as error:
            print(f"warning: reference features are not cached ({error})", file=sys.stderr)
    return found


def read_features(path):
    """The cached features, or None when they are not there, or damaged."""
    try:
        return torch.from_numpy(np.load(path))
    except (OSError, ValueError, EOFError):
        return None


def real_features(subject, args, extract):
    """Features (M, d) of the reference images, and what the images are."""
    images = subject.group.main_first(lambda: reference.load(subject.config.data, args.split, subject.trained_on))
    n = len(images.pixels)
    if n < 2:
        raise UserError(
            f"{images.name}: {n} image in the split {args.split!r}, and a distance needs at least 2; "
            "take another --split, or --data with more"
        )
    content = hashlib.sha256(str(images.pixels.shape).encode())
    content.update(np.ascontiguousarray(images.pixels))
    content = content.hexdigest()
    key = hashlib.sha256(f"{content} {extract.name} {extract.digest}".encode()).hexdigest()[:32]

    path = folder.cache_folder() / f"features-{key}.npy"
    found = cached(path, subject.group, lambda: features_of(images, subject, extract))
    return found, {"data": images.name, "split": args.split, "reference_n": n, "reference_sha256": content}


def unseen_features(subject, args, extract):
    """Features (n, d) of as many unseen real images as are drawn: their distance is as good as drawn ones can be.

    None where so many are not there, and where the reference is not the training images alone, but these, too.
    """
    if args.split != "train":
        return None
    images = subject.group.main_first(lambda: reference.unseen(subject.config.data, args.n, subject.trained_on))
    return features_of(images, subject, extract) if len(images.pixels) == args.n else None


def features_of(images, subject, extract):
    """Features (N, d) of real images, shared between the processes."""
    with subject.bar(len(images.pixels), "real image") as bar:
        work = lambda numbers: extract(pictures.rgb(torch.from_numpy(images.pixels[numbers])))  # noqa: E731
        return replace(subject, batch_size=128).each(len(images.pixels), work, bar)
