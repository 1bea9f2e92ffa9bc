"""Make pictures from a checkpoint:  python generate.py ddim|dpmpp|heun|... [--ckpt last|best|PATH] [-n 16] [--gif]

The checkpoint holds the config, so no data and no flags of the architecture are needed.  Picture i depends only on
(seed, i).  Read next: diffusion/samplers.py.
"""

import json
import math
import sys
from collections import defaultdict
from pathlib import Path

import torch
from tqdm import tqdm

import cli
import processes
from config import UserError
from dataset import pictures
from dataset.pixels import to_uint8
from diffusion import variants
from diffusion.samplers import SAMPLERS, check_eta
from diffusion.steps import adjacent, begin, counted, spaced, spaced_logsnr, spaced_rho
from files import put, replacing
from models import checkpoint

STAGES = 8  # columns of --strip
FRAMES = 40  # of --gif, at most
MOST = 100_000  # pictures: their names have five digits
WORK = 16  # pictures in one batch by default
SHOWN = 16  # pictures in the GIF, at most
GRID = 400  # pictures in grid.png, at most
ENLARGED = 2**30  # bytes of a figure that --upscale enlarges, at most; writing it takes about three times that
SPACINGS = ("logsnr", "time")
# sampler -> {option: how its flag is declared}, none if it is not here; the options `spacing` and `rho` choose levels
OPTIONS = defaultdict(dict)
OPTIONS |= {
    "ddpm": {
        "variance": {
            "choices": ("small", "large", "learned"),
            "default": "small",
            "help": "small (default): the posterior's; large: beta; learned: the network's own",
        }
    },
    "ddim": {
        "eta": {
            "type": cli.number(),
            "default": None,
            "help": "0 = no fresh noise, 1 = as ddpm (default: the checkpoint's own)",
        },
        "spacing": {"choices": SPACINGS, "default": "time", "help": "levels even in t (default) or log-SNR"},
    },
    "dpmpp": {"spacing": {"choices": SPACINGS, "default": "logsnr", "help": "levels even in log-SNR (default) or t"}},
    "heun": {"rho": {"type": cli.number(1), "default": 7.0, "help": "levels even in sigma^(1/rho) (default 7)"}},
    "pc": {
        "snr": {
            "type": cli.number(0, 1),
            "default": 0.16,
            "help": "length of a corrector step over its noise's, below 1 (default 0.16)",
        },
        "corrector_steps": {"type": cli.whole(0), "default": 1, "help": "Langevin steps on each level (default 1)"},
    },
    "ode": {
        "tol": {
            "type": cli.number(1e-5),
            "default": 1e-2,
            "help": "largest error of a step in any pixel (default 0.01)",
        }
    },
}


def parser():
    """The command line: one subcommand a sampler."""
    p = cli.Parser(prog="generate.py", description=__doc__.split("\n")[0])
    commands = p.add_subparsers(dest="sampler", metavar="|".join(SAMPLERS), required=True, parser_class=cli.Parser)
    for name, sampler in SAMPLERS.items():
        s = commands.add_parser(name, prog=f"generate.py {name}", help=sampler.__doc__.split("\n")[0])
        cli.add_checkpoint(s)
        s.add_argument("-n", type=cli.whole(1, MOST), default=16, help="how many pictures (default 16)")
        s.add_argument(
            "--batch-size",
            type=cli.whole(1, MOST),
            default=WORK,
            metavar="B",
            help=f"pictures made at once (default {WORK}); a batch is always full",
        )
        usual = "all T" if name == "ddpm" else "the checkpoint's own"
        what = f"noise levels visited, 1..T (default: {usual})"
        what = f"stages to show (default {STAGES}); it chooses its own steps" if name == "ode" else what
        s.add_argument("--steps", type=cli.whole(1), metavar="N", help=what)
        s.add_argument("--label", metavar="NAME|NUMBER|none", help="class (default: all in turn; none: the null class)")
        s.add_argument(
            "--guidance",
            type=cli.number(),
            metavar="S",
            help="1 = conditional, 0 = unconditional (default: the checkpoint's own)",
        )
        s.add_argument("--no-clip", action="store_true", help="do not keep x0-hat in [-1, 1]")
        s.add_argument("--gif", action="store_true", help="animate the denoising")
        s.add_argument("--strip", action="store_true", help="equally spaced stages, with x0-hat below")
        s.add_argument("--upscale", type=cli.whole(1, 64), default=1, metavar="K", help="each pixel becomes K x K")
        s.add_argument("--out", metavar="DIR", help="folder for the pictures (default out/SAMPLER)")
        cli.add_running(s)
        for option, declared in OPTIONS[name].items():
            s.add_argument(f"--{option.replace('_', '-')}", **declared)
    return p


def defaults(sampler, eta):
    """{option: value} of a sampler when nothing is asked for.  eta: the run's own."""
    options = {name: declared["default"] for name, declared in OPTIONS[sampler].items()}
    return options | ({"eta": eta} if "eta" in options else {})


def levels(schedule, n, top, spacing="time", rho=None):
    """n falling noise levels from `top`: even in t, in log-SNR, or with a rho in sigma^(1/rho)."""
    if rho is not None:
        return spaced_rho(schedule, n, rho, top)
    return spaced_logsnr(schedule, n, top) if spacing == "logsnr" else spaced(top, n)


def plan(schedule, steps, options, top=None):
    """(levels of a walk in this many steps from `top`, by default T; the options that the sampler takes itself).

    options: {name: value} of all of them, as OPTIONS declares them.  Raises UserError if eta is too large.
    """
    own = {name: value for name, value in options.items() if name not in ("spacing", "rho")}
    of_levels = {name: value for name, value in options.items() if name not in own}
    timesteps = levels(schedule, steps, top or schedule.T, **of_levels)
    if "eta" in own:
        try:
            check_eta(schedule, adjacent(schedule, timesteps), own["eta"])
        except ValueError as error:
            raise UserError(f"--eta {own['eta']:g}: {error}") from None
    return timesteps, own


def find_label(text, config, state, path):
    """The label that --label names, as cli.find_label, but a mistake names the checkpoint: is it the one meant?"""
    try:
        return cli.find_label(text, state["classes"], config.model.num_classes)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def check_variance(variance, config, path):
    """Raise UserError if the variance is to be one that the checkpoint has not learned."""
    if variance == "learned" and config.diffusion.process != "learned_variance":
        raise UserError(
            f"--variance learned: {path} has learned none; train with --diffusion.process learned_variance, "
            "or choose small or large"
        )


def check_upscale(k, size):
    """Refuse, before the work, to enlarge a figure of `size` bytes k times each way if it would fill the memory."""
    most = max(1, math.isqrt(ENLARGED // size))
    if k > most:
        raise UserError(
            f"--upscale {k}: the largest figure would have {k * k * size / 2**30:.1f} GiB; "
            f"use --upscale {most} at most, fewer pictures, or no --gif"
        )


def main(argv):
    """Run the program with these arguments; returns the exit code."""
    args = parser().parse_args(argv)
    path = cli.find_checkpoint(args.ckpt, args.preset)
    with processes.joined(args.device) as group:
        return generate(args, path, group)


def generate(args, path, group):
    """Check what is asked for against the checkpoint, sample, write.  Several processes share the batches."""
    model, config, state = checkpoint.load_model(path, group.device, args.weights)
    diffusion = variants.from_config(config.diffusion).to(group.device)
    schedule, T, classes = diffusion.schedule, diffusion.T, config.model.num_classes
    model = torch.compile(model) if args.compile else model

    usual = {"ddpm": T, "ode": STAGES}.get(args.sampler, config.sample.steps)
    steps = cli.check_level("--steps", args.steps or min(usual, T), T)
    options = {name: getattr(args, name) for name in OPTIONS[args.sampler]}
    if "eta" in options and args.eta is None:
        options["eta"] = config.sample.eta
    check_variance(options.get("variance"), config, path)
    label = find_label(args.label, config, state, path)
    if args.guidance is not None and label is None:
        why = "without a class" if classes else "as the model has no classes"
        raise UserError(f"{path}: --guidance: there is nothing to guide by {why}; leave it out")
    guidance = (config.sample.guidance if label is not None else 1.0) if args.guidance is None else args.guidance
    timesteps, of_sampler = plan(schedule, steps, options)

    frames = pictures.evenly(0, steps, FRAMES) if args.gif else []
    columns = pictures.evenly(1, steps, STAGES) if args.strip else []
    shown = min(args.n, args.batch_size, SHOWN)
    at_once = max(min(args.n, GRID), shown * len(frames), min(shown, 4) * 2 * len(columns))  # a GIF is made whole
    check_upscale(args.upscale, at_once * config.data.channels * math.prod(config.data.size))

    out = Path(args.out or Path("out") / args.sampler)
    group.main_only(lambda: prepare(out, {"sampler": args.sampler, "n": args.n}, names))
    if group.main:
        print(f"{path}: {config.name}, step {state['step']:,}, {args.weights} weights")
        compiled = ", compiled" if args.compile else ""
        print(f"{args.sampler}, {steps} steps, {group.device}, {args.precision}{compiled}")

    def walk(numbers):
        """(x_T, the walk from it, the list of its network evaluations) of the pictures with these numbers."""
        x, noise = begin(args.seed, numbers, (config.data.channels, *config.data.size), group.device)
        y = None
        if label is not None:
            y = torch.tensor([i % classes if label == "each" else label for i in numbers], device=group.device)
        denoise, calls = counted(diffusion.denoiser(model, y, guidance=guidance, clip=not args.no_clip))
        sampler = SAMPLERS[args.sampler]
        return x, sampler(denoise, schedule, x, timesteps=timesteps, noise_like=noise, **of_sampler), calls

    found, kept, evaluations = sample(args, group, walk, steps, {*frames, *columns})
    if None in found.values():
        raise UserError(f"{path}: the pictures are not finite; train again with a lower --train.lr")
    shares = group.gather(found)
    if not group.main:
        return 0
    whole = {start: images for share in shares for start, images in share.items()}
    settings = {
        "checkpoint": str(path), "checkpoint_sha256": checkpoint.digest(path), "step": state["step"],
        "weights": args.weights, "sampler": args.sampler,
        "steps": steps, "evaluations": evaluations, **options, "n": args.n, "seed": args.seed,
        "label": args.label, "guidance": guidance, "batch_size": args.batch_size, "clip": not args.no_clip,
        "upscale": args.upscale, "device": str(group.device), "processes": group.world,
        "precision": args.precision, "compile": args.compile, "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }  # fmt: skip
    print(f"{evaluations:,} network evaluations a picture")
    images = torch.cat([whole[start] for start in sorted(whole)])
    write(out, images, [kept[i] for i in frames], [kept[i] for i in columns], args.upscale, settings)
    return 0


def sample(args, group, walk, steps, wanted):
    """This process's share: {first number of the batch: pictures, or None if they are not finite}, stages of the first
    batch, network evaluations for each picture.

    Every batch is full: the last is padded with the numbers that would come next.  So the bytes do not depend on n.
    wanted: the stages of the first pictures to keep, as {stage: (x, x0-hat)}; stage 0 is the noise.
    """
    shown = min(args.n, args.batch_size, SHOWN)
    batches = range(0, args.n, args.batch_size)[group.rank :: group.world]
    found, kept, calls = {}, {}, []
    autocast = torch.autocast(group.device.type, dtype=torch.bfloat16, enabled=args.precision == "bf16")
    hidden = None if group.main else True  # None: shown on a terminal
    with tqdm(total=len(batches) * steps, unit="step", disable=hidden, dynamic_ncols=True) as bar, autocast:
        for start in batches:
            x, stages, calls = walk(range(start, start + args.batch_size))
            if start == 0:
                kept[0] = (to_uint8(x[:shown]).cpu(), None)
            for i, step in enumerate(stages, 1):
                if start == 0 and i in wanted:
                    kept[i] = (to_uint8(step.x[:shown]).cpu(), to_uint8(step.x0[:shown]).cpu())
                bar.set_postfix(evaluations=len(calls), refresh=False)
                bar.update(1)
            x_0 = step.x[: args.n - start]
            found[start] = to_uint8(x_0).cpu() if torch.isfinite(x_0).all() else None
    return found, kept, len(calls)


def numbered(n):
    """The names of n pictures."""
    return {f"{i:05d}.png" for i in range(min(n, MOST))}


def names(settings):
    """Names of the files that these settings go with; none if another program wrote them."""
    if settings["sampler"] not in SAMPLERS or "command" in settings:  # edit.py has both
        return set()
    return {"settings.json", "grid.png", "denoising.gif", "strip.png", *numbered(settings["n"])}


def made(out, names):
    """Names of what an earlier call may have written in this folder, by the settings that it holds."""
    try:
        return names(json.loads((out / "settings.json").read_text()))
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def prepare(out, settings, names):
    """Create the folder before the work begins, so that it is not in vain.

    Raises UserError if nothing can be written there, or if what would be replaced is not of an earlier call.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        with replacing(out / ".writable"):
            pass
        (out / ".writable").unlink()
        there = {p.name for p in out.iterdir()}
    except OSError as error:
        raise UserError(f"cannot write in {out}: {error.strerror}; choose another folder with --out DIR") from None
    foreign = sorted((there & names(settings)) - made(out, names))
    if foreign:
        raise UserError(
            f"{out / foreign[0]} was not written by an earlier call like this one, and would be replaced; "
            "choose another folder with --out DIR"
        )


def clear(out, names):
    """Remove what an earlier call wrote, so that the folder holds exactly n pictures; and nothing else, ever.

    Only its settings stay: should this be interrupted, the next call still knows what to clear.
    """
    found = made(out, names)
    for path in [*(out / name for name in found - {"settings.json"}), *(out.glob(".*.tmp") if found else ())]:
        path.unlink(missing_ok=True)  # the last: what a process left that was killed while writing


def write(out, images, frames, columns, k, settings):
    """Write n PNGs, the grid, the GIF of the frames, the strip of the columns (if any), and the settings."""
    clear(out, names)
    # The settings first: if this is interrupted, the next call still knows what to clear.
    put(out / "settings.json", Path.write_text, json.dumps(settings, indent=2) + "\n")
    for i, image in enumerate(images):
        put(out / f"{i:05d}.png", pictures.save_png, pictures.upscale(image, k), flush=False)  # easily drawn again
    put(out / "grid.png", pictures.save_png, pictures.grid(pictures.upscale(images[:GRID], k)))
    if frames:
        put(out / "denoising.gif", pictures.save_gif, [pictures.grid(pictures.upscale(x, k)) for x, _ in frames])
    if columns:
        x, x0 = (torch.stack([stage[which][:4] for stage in columns], 1) for which in (0, 1))  # (4, columns, C, H, W)
        rows = torch.stack([x, x0], 1).flatten(0, 2)  # for each picture: its stages, and x0-hat below
        put(out / "strip.png", pictures.save_png, pictures.grid(pictures.upscale(rows, k), columns=len(columns)))
    print(f"{len(images):,} pictures and grid.png in {out}")


if __name__ == "__main__":
    sys.exit(cli.run(main))
