"""How many bits does the model need for each number of a picture it has not seen?

By the sampler's bound, diffusion/bound.py, or by the differential equation, diffusion/ode.py.
"""

import sys

import numpy as np
import torch

import sampling
from config import UserError
from dataset import reference
from dataset.pixels import from_uint8
from diffusion import bound, ode
from diffusion.steps import image_noise
from measures.table import write_csv


def to_be_coded(subject, args):
    """The images whose bits are counted, and facts for the protocol; with labels if their classes are the model's."""
    data, trained_on = subject.config.data, subject.trained_on
    if args.split == "val":
        images = subject.group.main_first(lambda: reference.unseen(data, args.n, trained_on))
    else:
        images = reference.every(subject.group.main_first(lambda: reference.load(data, args.split, trained_on)), args.n)
    known = images.labels is not None and list(images.classes) == list(subject.classes)
    split = "unseen" if args.split == "val" else args.split
    n = len(images.pixels)
    if n < args.n and subject.group.main:
        print(f"warning: only {n:,} images are there ({split}), so {n:,} are coded", file=sys.stderr)
    labels = "given" if known and subject.config.model.num_classes else "none"
    if labels == "none":
        subject.check_null_class("take --data with the classes that it knows")
    return images, {"data": images.name, "split": split, "images": n, "labels": labels}


def in_double(subject, images, numbers, facts, clip=True):
    """The Denoise of these images: the network in float32 on its device, all that follows in float64 on the CPU."""
    device = subject.device
    y = torch.from_numpy(images.labels[numbers]).to(device) if facts["labels"] == "given" else None
    network = subject.diffusion.denoiser(subject.model, y, clip=clip)

    def denoise(x, t):
        guess = network(x.float().to(device), t)
        if hasattr(guess, "variance"):  # and says one, for --variance learned
            return guess.to("cpu", torch.float64)
        return tuple(z.cpu().double() for z in guess)

    return denoise


def mean_figures(bits):
    """Of the bits per dimension of each image (N,): their mean, and its standard error, None for a single image."""
    error = (bits.std() / len(bits) ** 0.5).item() if len(bits) > 1 else None
    return {"bits_per_dim": bits.mean().item(), "standard_error": error}


def mean_text(figures):
    """The same for people."""
    error = figures["standard_error"]
    return f"{figures['bits_per_dim']:.4f}{'' if error is None else f' ± {error:.4f}'} bits per dimension"


def bpd(subject, args, out):
    """Variational bound on the negative log-likelihood, in bits per dimension, by term and by t."""
    sampling.check_variance(args.variance, subject.config, subject.path)
    images, facts = to_be_coded(subject, args)
    schedule, T, group = subject.schedule, subject.T, subject.group
    stretches = [(1, 1), *bound.strata(T, args.levels), (T + 1, T + 1)]

    def work(numbers):
        rng = np.random.default_rng((subject.seed, numbers[0], 1))
        noise_like = image_noise(subject.seed, numbers)
        x_0 = from_uint8(torch.from_numpy(images.pixels[numbers])).double()
        denoise = in_double(subject, images, numbers, facts)
        draw = lambda low, high: int(rng.integers(low, high + 1))  # noqa: E731
        parts = []
        for nats in bound.bound(denoise, schedule, x_0, noise_like, draw, args.levels, args.variance):
            parts.append(bound.in_bits(nats, x_0))
            bar.update(group.world)
        return torch.stack(parts, dim=1)  # (B, stretches)

    n = len(images.pixels)
    with subject.bar(-(-n // subject.batch_size) * len(stretches), "level") as bar:
        table = subject.each(n, work)
    protocol = {**facts, "variance": args.variance, "levels": len(stretches) - 2, "T": T}  # there may be fewer than K
    if not group.main:
        return protocol, {}
    mean, bits = table.mean(dim=0), table.sum(dim=1)
    figures = {
        **mean_figures(bits),
        "L_0": mean[0].item(),
        "L_t": mean[1:-1].sum().item(),
        "L_T": mean[-1].item(),
    }
    rows = [
        (first, last, value, value / (last - first + 1))
        for (first, last), value in zip(stretches[1:-1], mean[1:-1].tolist())
    ]
    write_csv(out / "by_image.csv", ("image", "bits_per_dim"), zip(range(n), bits.tolist()))
    write_csv(out / "by_t.csv", ("t_first", "t_last", "bits_per_dim", "bits_per_dim_and_level"), rows)
    print(f"at most {mean_text(figures)}, n = {n:,}")
    print(
        f"L_0 {figures['L_0']:.4f}, sum of L_t {figures['L_t']:.4f}, L_T {figures['L_T']:.6f}; "
        f"by t in {out}/by_t.csv, by image in {out}/by_image.csv"
    )
    return protocol, figures


def loglik(subject, args, out):
    """Likelihood under the probability-flow ODE, in bits per dimension.  What the figure is: ode.bits_per_dim."""
    images, facts = to_be_coded(subject, args)
    schedule, T, group = subject.schedule, subject.T, subject.group
    n = len(images.pixels)

    def work(numbers):
        x_0 = from_uint8(torch.from_numpy(images.pixels[numbers])).double()
        noise_like = image_noise(subject.seed, numbers)
        network = in_double(subject, images, numbers, facts, clip=False)
        draws = []
        for _ in range(args.probes):
            reached = 0

            def denoise(x, t):
                nonlocal reached
                if t > reached:  # how many steps the solver takes is not known, but how far it is
                    bar.update((t - reached) * group.world)
                    reached = t
                return network(x, t)

            draws.append(ode.bits_per_dim(denoise, schedule, x_0, noise_like, tol=args.tol))
        return torch.stack(draws, dim=1)  # (B, probes)

    with subject.bar(-(-n // subject.batch_size) * args.probes * T, "level") as bar:
        table = subject.each(n, work)
    if not torch.isfinite(table).all():
        raise UserError(f"{subject.path}: the likelihood is not finite; train again with a lower --train.lr")
    protocol = {
        **facts, "density": "p_1 of the probability-flow ODE, at the picture itself", "dequantisation": "uniform",
        "probes": args.probes, "tol": args.tol, "T": T,
    }  # fmt: skip
    if not group.main:
        return protocol, {}
    bits = table.mean(dim=1)
    figures = mean_figures(bits)
    of_draws = (table.std(dim=1) / args.probes**0.5).tolist() if args.probes > 1 else [""] * n
    write_csv(out / "by_image.csv", ("image", "bits_per_dim", "standard_error"), zip(range(n), bits.tolist(), of_draws))
    print(f"{mean_text(figures)}, n = {n:,}, by the ODE from level 1 to {T}; by image in {out}/by_image.csv")
    return protocol, figures
