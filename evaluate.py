"""Measure a checkpoint:  python evaluate.py fid|kid|bpd|loglik|nearest|speed|sweep [--ckpt last|best|PATH] [-n N]

Every command says by which protocol it measured, and writes that beside its figures.  Several processes share the work:
torchrun --nproc-per-node=N evaluate.py ...  Read next: evaluation/, diffusion/bound.py, diffusion/sde.py.
"""

import csv
import hashlib
import json
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import cli
import processes
import sampling
from config import Config, UserError
from dataset import folder, pictures, reference
from dataset.pixels import from_uint8, to_uint8
from diffusion import bound, sde, variants
from diffusion.process import GaussianDiffusion
from diffusion.samplers import SAMPLERS
from diffusion.steps import begin, counted, image_noise, last
from evaluation import compare, features
from evaluation import nearest as neighbours
from evaluation.frechet import frechet, moments
from evaluation.kernel import kernel_distance
from files import put, replacing
from models import checkpoint

ENOUGH = 2048  # images, as many as Inception has features: the covariance of fewer is far from full rank
SHOWN = 16  # samples in the figure of `nearest`
IMAGES = {  # by default
    "fid": ENOUGH, "kid": ENOUGH, "bpd": 64, "loglik": 32, "nearest": 256, "speed": 16, "sweep": 256,
}  # fmt: skip
STEPS = (5, 10, 25, 50)  # of `speed` and `sweep`


# ---------------------------------------------------------------- command line


def parser():
    """The command line: one subcommand a measurement."""
    p = cli.Parser(prog="evaluate.py", description=__doc__.split("\n")[0])
    commands = p.add_subparsers(dest="command", metavar="|".join(COMMANDS), required=True, parser_class=cli.Parser)
    for name, command in COMMANDS.items():
        s = commands.add_parser(name, prog=f"evaluate.py {name}", help=command.__doc__.split("\n")[0])
        cli.add_checkpoint(s)
        n = IMAGES[name]
        s.add_argument("-n", type=cli.whole(1 if name == "speed" else 2), default=n, help=f"images (default {n:,})")
        s.add_argument("--out", metavar="DIR", help=f"folder for the figures (default out/{name})")
        if name != "speed":  # which draws all at once
            s.add_argument("--batch-size", type=cli.whole(1), default=16, metavar="B", help="at once (default 16)")
            s.add_argument(
                "--data",
                metavar="SOURCE",
                help="real images: a source or PATH (default: what the checkpoint was trained on)",
            )
        if name in ("fid", "kid", "sweep", "bpd", "loglik"):
            split = "val" if name in ("bpd", "loglik") else "train"
            s.add_argument("--split", choices=reference.SPLITS, default=split, help=f"of the data (default {split})")
        if name in ("fid", "kid", "sweep"):
            usual = "random" if name == "sweep" else "inception"
            s.add_argument(
                "--features", choices=features.NAMES, default=usual, help=f"what is compared (default {usual})"
            )
            s.add_argument("--weights-file", metavar="PATH", help="Inception's weights, instead of downloading them")
        if name == "bpd":
            s.add_argument("--variance", **sampling.OPTIONS["ddpm"]["variance"])
            s.add_argument(
                "--levels",
                type=cli.whole(1),
                default=100,
                metavar="K",
                help="levels measured, drawn once a batch; the ± is over the images alone (default 100)",
            )
        elif name == "loglik":
            s.add_argument(
                "--probes", type=cli.whole(1), default=1, metavar="K", help="random probes for each image (default 1)"
            )
            s.add_argument("--tol", type=cli.number(1e-5), default=1e-3, help="largest error of a step (default 1e-3)")
        else:
            s.add_argument("--guidance", type=cli.number(), metavar="S", help="default: the checkpoint's own")
            usual = "default 0" if name in ("speed", "sweep") else "default: the checkpoint's own"
            s.add_argument("--eta", type=cli.number(), help=f"of ddim ({usual})")
            cli.add_running(s)
        if name in ("speed", "sweep"):
            names = cli.several(cli.one_of(SAMPLERS))
            counts = cli.several(cli.whole(1))
            s.add_argument("--samplers", type=names, default=tuple(SAMPLERS), metavar="A,B", help="default: all")
            s.add_argument("--steps", type=counts, metavar="N,N", help=f"default {','.join(map(str, STEPS))}")
        elif name not in ("bpd", "loglik"):
            s.add_argument("--sampler", choices=tuple(SAMPLERS), default="ddim", help="default ddim")
            usual = "default: the checkpoint's own, also for ddpm"
            s.add_argument("--steps", type=cli.whole(1), metavar="N", help=f"noise levels ({usual})")
    return p


def main(argv):
    """Run the program with these arguments; returns the exit code."""
    args = parser().parse_args(argv)
    if getattr(args, "eta", None) is not None:
        samplers = args.samplers if "samplers" in args else (args.sampler,)
        if not any(sampling.has(sampler, "eta") for sampler in samplers):
            have = "has" if len(samplers) == 1 else "have"
            raise UserError(f"--eta {args.eta:g}: {' and '.join(samplers)} {have} none; leave it out, or take ddim")
    path = cli.find_checkpoint(args.ckpt, args.preset)
    if args.command != "speed":  # a figure is of float32 on a GPU too, whose convolutions would round to TF32
        torch.backends.cudnn.allow_tf32 = False
    with processes.joined(args.device) as group:
        model, config, state = checkpoint.load_model(path, group.device, args.weights)
        if args.command != "speed" and args.data is not None:
            config = replace(config, data=replace(config.data, source=args.data))
        diffusion = variants.from_config(config.diffusion).to(group.device)
        guidance = getattr(args, "guidance", 1.0)
        if guidance not in (None, 1.0) and not config.model.num_classes:
            raise UserError("--guidance: the model has no classes, so there is nothing to guide by; leave it out")
        guidance = config.sample.guidance if guidance is None else guidance
        sampling.check_null_class(config, "each", guidance, path, "leave --guidance out")
        size = args.n if args.command == "speed" else args.batch_size
        running = {name: getattr(args, name) for name in ("precision", "compile") if name in args}
        model = torch.compile(model) if running.get("compile") else model
        precision = running.get("precision", "fp32")
        subject = Subject(path, model, config, state, diffusion, group, args.seed, size, guidance, precision)
        out = Path(args.out or Path("out") / args.command)
        group.main_only(lambda: cli.make_folder(out))
        if group.main:
            print(f"{path}: {config.name}, step {state['step']:,}, {args.weights} weights, {group.device}")
        with torch.no_grad():
            protocol, figures = COMMANDS[args.command](subject, args, out)
        if group.main:
            common = {
                "checkpoint": str(path), "checkpoint_sha256": checkpoint.digest(path), "step": state["step"],
                "weights": args.weights, "device": str(group.device), "processes": group.world,
                "torch": torch.__version__, "n": args.n, "seed": args.seed, "batch_size": size, **running,
            }  # fmt: skip
            report = {"figures": figures, "protocol": {**common, **protocol}}
            put(out / f"{args.command}.json", Path.write_text, json.dumps(report, indent=2) + "\n")
            print("protocol  " + ", ".join(f"{k} {_short(v)}" for k, v in protocol.items() if not isinstance(v, dict)))
            print(f"written   {out}/{args.command}.json")
        return 0


def _short(value):
    return str(value)[:12] if isinstance(value, str) and len(value) == 64 else str(value)


# ---------------------------------------------------------------- what is measured


@dataclass(frozen=True)
class Subject:
    """A checkpoint ready to be measured, and how."""

    path: Path
    model: torch.nn.Module
    config: Config
    state: dict
    diffusion: GaussianDiffusion
    group: processes.Processes
    seed: int
    batch_size: int
    guidance: float
    precision: str  # of the network while it draws; all else is float32

    def steps(self, asked):
        """The number of noise levels: as asked for, or the run's own, also for ddpm: all T would take too long."""
        return cli.check_level("--steps", asked or self.config.sample.steps, self.diffusion.T)

    def options(self, sampler, steps, eta):
        """{option: value} of a sampler: generate.py's defaults; eta as asked for, or None: the checkpoint's own.

        Raises UserError if this eta is too large for so many steps: ask before the work, which would be lost.
        """
        options = sampling.defaults(sampler, self.config.sample.eta if eta is None else eta)
        sampling.plan(self.diffusion.schedule, steps, options)
        return options

    def bar(self, total, unit):
        """A progress bar on the first process."""
        hidden = None if self.group.main else True
        return tqdm(total=total, unit=unit, disable=hidden, dynamic_ncols=True, leave=False)

    def draw(self, numbers, sampler, steps, eta):
        """Pictures with these numbers, uint8 on the CPU, and the network evaluations of each.  Classes take turns."""
        d, classes = self.config.data, self.config.model.num_classes
        timesteps, options = sampling.plan(self.diffusion.schedule, steps, self.options(sampler, steps, eta))
        x, noise = begin(self.seed, numbers, (d.channels, *d.size), self.group.device)
        y = sampling.labels("each" if classes else None, numbers, classes, self.group.device)
        denoise, calls = counted(self.diffusion.denoiser(self.model, y, guidance=self.guidance))
        walk = SAMPLERS[sampler](denoise, self.diffusion.schedule, x, timesteps=timesteps, noise_like=noise, **options)
        with torch.autocast(self.group.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16"):
            x_0 = last(walk)
        if not torch.isfinite(x_0).all():
            raise UserError(f"{self.path}: the pictures of {sampler} at {steps} steps are not finite")
        return to_uint8(x_0).cpu(), len(calls)

    def each(self, n, work, bar=None):
        """work(batch of numbers) -> tensor, for the numbers 0..n-1 in shares of each process; all of it in order."""
        mine = list(range(self.group.rank, n, self.group.world))
        done = []
        for start in range(0, len(mine), self.batch_size):
            numbers = mine[start : start + self.batch_size]
            done.append(work(numbers))
            if bar is not None:
                bar.update(len(numbers) * self.group.world)
        shares = self.group.gather((mine, torch.cat(done) if done else None))
        order = torch.tensor([i for numbers, _ in shares for i in numbers]).argsort()
        return torch.cat([values for _, values in shares if values is not None])[order]

    def draw_features(self, n, extract, sampler, steps, eta, bar):
        """Features (n, d) of the pictures 0..n-1, and the most network evaluations that one of them took."""
        spent = []

        def work(numbers):
            drawn, evaluations = self.draw(numbers, sampler, steps, eta)
            spent.append(evaluations)
            return extract(drawn)

        return self.each(n, work, bar), max(spent, default=0)


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
    images = subject.group.main_first(lambda: reference.load(subject.config.data, args.split))
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

    def compute():
        with subject.bar(n, "real image") as bar:
            work = lambda numbers: extract(torch.from_numpy(images.pixels[numbers]))  # noqa: E731
            return replace(subject, batch_size=128).each(n, work, bar)

    found = cached(folder.cache_folder() / f"features-{key}.npy", subject.group, compute)
    return found, {"data": images.name, "split": args.split, "reference_n": n, "reference_sha256": content}


# ---------------------------------------------------------------- the commands


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
    steps = subject.steps(args.steps)
    options = subject.options(args.sampler, steps, args.eta)
    extract = features.extractor(args.features, subject.group.device, args.weights_file)
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


def to_be_coded(subject, args):
    """The images whose bits are counted, and what they are; with labels if they are those that the model knows."""
    data = subject.config.data
    if args.split == "val":
        images = subject.group.main_first(lambda: reference.unseen(data, args.n))
    else:
        images = reference.every(subject.group.main_first(lambda: reference.load(data, args.split)), args.n)
    known = images.labels is not None and list(images.classes) == subject.state["classes"]
    split = "unseen" if args.split == "val" else args.split
    n = len(images.pixels)
    if n < args.n and subject.group.main:
        print(f"warning: only {n:,} images are there ({split}), so {n:,} are coded", file=sys.stderr)
    labels = "given" if known and subject.config.model.num_classes else "none"
    if labels == "none":
        sampling.check_null_class(subject.config, None, 1.0, subject.path, "take --data with the classes that it knows")
    return images, {"data": images.name, "split": split, "images": n, "labels": labels}


def in_double(subject, images, numbers, facts, clip=True):
    """The Denoise of these images: the network in float32 where it is, what is made of it in float64 on the CPU."""
    device = subject.group.device
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
    schedule, T, group = subject.diffusion.schedule, subject.diffusion.T, subject.group
    stretches = [(1, 1), *bound.strata(T, args.levels), (T + 1, T + 1)]

    def work(numbers):
        rng = np.random.default_rng((subject.seed, numbers[0], 1))
        noise = image_noise(subject.seed, numbers)
        x_0 = from_uint8(torch.from_numpy(images.pixels[numbers])).double()
        denoise = in_double(subject, images, numbers, facts)
        draw = lambda low, high: int(rng.integers(low, high + 1))  # noqa: E731
        parts = []
        for nats in bound.bound(denoise, schedule, x_0, noise, draw, args.levels, args.variance):
            parts.append(bound.in_bits(nats, x_0))
            bar.update(group.world)
        return torch.stack(parts, dim=1)  # (B, stretches)

    n = len(images.pixels)
    with subject.bar(-(-n // subject.batch_size) * len(stretches), "level") as bar:
        table = subject.each(n, work)
    protocol = {**facts, "variance": args.variance, "levels": len(stretches) - 2, "T": T}  # there may be fewer than K
    if not group.main:
        return protocol, {}
    mean = table.mean(dim=0)
    figures = {
        **mean_figures(table.sum(dim=1)),
        "L_0": mean[0].item(),
        "L_t": mean[1:-1].sum().item(),
        "L_T": mean[-1].item(),
    }
    rows = [
        (first, last, value, value / (last - first + 1))
        for (first, last), value in zip(stretches[1:-1], mean[1:-1].tolist())
    ]
    write_csv(out / "by_t.csv", ("t_first", "t_last", "bits_per_dim", "bits_per_dim_and_level"), rows)
    print(f"at most {mean_text(figures)}, n = {n:,}")
    print(
        f"L_0 {figures['L_0']:.4f}, sum of L_t {figures['L_t']:.4f}, L_T {figures['L_T']:.6f}; by t in {out}/by_t.csv"
    )
    return protocol, figures


def loglik(subject, args, out):
    """Likelihood under the probability-flow ODE, in bits per dimension.  What the figure is: sde.bits_per_dim."""
    images, facts = to_be_coded(subject, args)
    schedule, T, group = subject.diffusion.schedule, subject.diffusion.T, subject.group
    n = len(images.pixels)

    def work(numbers):
        x_0 = from_uint8(torch.from_numpy(images.pixels[numbers])).double()
        noise = image_noise(subject.seed, numbers)
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

            draws.append(sde.bits_per_dim(denoise, schedule, x_0, noise, tol=args.tol))
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


def nearest(subject, args, out):
    """The nearest training image of every sample, and whether samples are nearer to them than unseen images are."""
    group, steps = subject.group, subject.steps(args.steps)
    options = subject.options(args.sampler, steps, args.eta)
    training = group.main_first(lambda: reference.load(subject.config.data, "train"))
    unseen = group.main_first(lambda: reference.unseen(subject.config.data, args.n))
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


def settings(subject, args):
    """([(sampler, steps)], eta): what `speed` and `sweep` compare.  Raises UserError if one of them cannot be."""
    counts = args.steps or sorted({min(s, subject.diffusion.T) for s in STEPS})
    compared = [(sampler, subject.steps(s)) for sampler in args.samplers for s in counts]
    eta = args.eta or 0.0  # what is compared are the samplers, whatever the run's own eta
    for sampler, steps in compared:
        subject.options(sampler, steps, eta)
    return compared, eta


def speed(subject, args, out):
    """Images a second by sampler and number of steps."""
    numbers = range(subject.group.rank * args.n, (subject.group.rank + 1) * args.n)
    compared, eta = settings(subject, args)
    subject.draw(numbers, args.samplers[0], 1, eta)  # the first call is slow
    rows = []
    with subject.bar(len(compared), "setting") as bar:
        for sampler, steps in compared:
            start = time.perf_counter()
            _, evaluations = subject.draw(numbers, sampler, steps, eta)  # on the CPU: the device is done
            seconds = max(subject.group.gather(time.perf_counter() - start))
            rows.append((sampler, steps, evaluations, args.n * subject.group.world / seconds))
            bar.update()
    header = ("sampler", "steps", "evaluations", "images_per_second")
    if subject.group.main:
        write_csv(out / "speed.csv", header, rows)
        print_table(header, rows)
    protocol = {"guidance": subject.guidance, "threads": torch.get_num_threads()}
    protocol |= {"eta": eta} if any(sampling.has(sampler, "eta") for sampler in args.samplers) else {}
    return protocol, {f"{s}_{steps}": rate for s, steps, _, rate in rows}


def sweep(subject, args, out):
    """Distance to real images against the number of steps, for every sampler: table and plot."""
    compared, eta = settings(subject, args)
    extract = features.extractor(args.features, subject.group.device, args.weights_file)
    warn_if_few(subject, args.n)
    real, facts = real_features(subject, args, extract)
    frechet_name, kernel_name = compare.names(extract.name)
    rows, of_real = [], moments(real)
    with subject.bar(len(compared) * args.n, "image") as bar:
        for sampler, steps in compared:
            start = time.perf_counter()
            found, evaluations = subject.draw_features(args.n, extract, sampler, steps, eta, bar)
            seconds = time.perf_counter() - start
            if subject.group.main:
                distance = frechet(*moments(found), *of_real)
                mean, std, _ = kernel_distance(found, real)
                rows.append((sampler, steps, evaluations, distance, mean, std, seconds))
    protocol = {**facts, "features": extract.name, "features_sha256": extract.digest, "guidance": subject.guidance}
    protocol |= {"eta": eta} if any(sampling.has(sampler, "eta") for sampler in args.samplers) else {}
    if subject.group.main:
        header = ("sampler", "steps", "evaluations", frechet_name, kernel_name, f"{kernel_name}_std", "seconds")
        write_csv(out / "sweep.csv", header, rows)
        print_table(header, rows)
        plot_sweep(out / "sweep.png", rows, compare.titles(extract.name)[0], args.n)
        print(f"plot      {out}/sweep.png")
    return protocol, {frechet_name: {f"{r[0]}_{r[1]}": r[3] for r in rows}}


COMMANDS = {"fid": fid, "kid": kid, "bpd": bpd, "loglik": loglik, "nearest": nearest, "speed": speed, "sweep": sweep}


# ---------------------------------------------------------------- what is written


def write_csv(path, header, rows):
    """Write a table, whole or not at all."""
    with replacing(path) as temp, open(temp, "w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def print_table(header, rows):
    """The table for people."""
    text = [header, *([f"{v:.4g}" if isinstance(v, float) else str(v) for v in row] for row in rows)]
    widths = [max(len(row[i]) for row in text) for i in range(len(header))]
    for row in text:
        print("  ".join(cell.rjust(w) for cell, w in zip(row, widths)))


def plot_sweep(path, rows, title, n):
    """Distance against network evaluations, one line a sampler, both axes logarithmic."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for sampler in dict.fromkeys(r[0] for r in rows):
        line = sorted((r[2], r[3]) for r in rows if r[0] == sampler)
        axes.plot(*zip(*line), marker="o", label=sampler)
    axes.set(xscale="log", yscale="log", xlabel="network evaluations a picture", ylabel=f"{title}, {n:,} samples")
    ticks = sorted({r[2] for r in rows})
    axes.grid(alpha=0.3, which="both")
    axes.set_xticks([t for i, t in enumerate(ticks) if i == 0 or t >= 1.25 * ticks[i - 1]])
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    axes.legend()
    with replacing(path) as temp:
        figure.savefig(temp, format="png", dpi=120)


if __name__ == "__main__":
    sys.exit(cli.run(main))
