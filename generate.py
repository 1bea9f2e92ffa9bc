"""Make pictures from a checkpoint:  python generate.py ddim|dpmpp|heun|... [--ckpt last|best|PATH] [-n 16] [--gif]

The checkpoint holds the config, so no data and no flags of the architecture are needed.  Picture i depends only on
(seed, i).  Read next: sampling.py for what the options mean, diffusion/samplers.py for the walks.
"""

import math
import sys
from pathlib import Path

import torch
from tqdm import tqdm

import cli
import machine
import outputs
import processes
import sampling
from dataset import pictures
from dataset.pixels import to_uint8
from diffusion.samplers import SAMPLERS
from files import put
from painter import Painter

FRAMES = 40  # of --gif, at most
WORK = 16  # pictures in one batch by default
SHOWN = 16  # pictures in the GIF, at most
GRID = 400  # pictures in grid.png, at most


def parser():
    """The command line: one subcommand a sampler."""
    p = cli.Parser(prog="generate.py", description=__doc__.split("\n")[0])
    commands = p.add_subparsers(dest="sampler", metavar="|".join(SAMPLERS), required=True)
    for name, sampler in SAMPLERS.items():
        s = commands.add_parser(name, prog=f"generate.py {name}", help=sampler.__doc__.split("\n")[0])
        cli.add_checkpoint(s)
        s.add_argument(
            "-n",
            type=cli.whole(1, outputs.MOST),
            default=16,
            help=f"pictures (default 16); grid.png has {GRID} at most",
        )
        s.add_argument(
            "--batch-size",
            type=cli.whole(1, outputs.MOST),
            default=WORK,
            metavar="B",
            help=f"pictures made at once (default {WORK}); the last batch is padded to this size",
        )
        if sampling.chooses_its_steps(name):
            what = f"stages to show (default {sampling.STAGES}); it chooses its own steps"
        else:
            usual = "all T" if name == "ddpm" else "the checkpoint's own"
            what = f"noise levels visited, 1..T (default: {usual})"
        s.add_argument("--steps", type=cli.whole(1), metavar="N", help=what)
        s.add_argument("--label", metavar="NAME|NUMBER|none", help="class (default: all in turn; none: the null class)")
        s.add_argument(
            "--guidance",
            type=cli.number(),
            metavar="S",
            help="1 = conditional, 0 = unconditional (default: the checkpoint's own)",
        )
        s.add_argument("--no-clip", action="store_true", help="do not keep x0-hat in [-1, 1]")
        s.add_argument("--gif", action="store_true", help=f"animate the denoising of the first {SHOWN}, of one batch")
        s.add_argument("--strip", action="store_true", help="equally spaced stages, with x0-hat below")
        s.add_argument("--upscale", type=cli.whole(1, 64), default=1, metavar="K", help="each pixel becomes K x K")
        s.add_argument("--out", type=cli.place, metavar="DIR", help="folder for the pictures (default out/SAMPLER)")
        cli.add_running(s)
        for option, declared in sampling.options_of(name).items():
            s.add_argument(f"--{option.replace('_', '-')}", **declared)
    return p


def main(argv):
    """Run the program with these arguments; returns the exit code."""
    args = parser().parse_args(argv)
    path = cli.find_checkpoint(args.ckpt, args.preset)
    with processes.joined(args.device) as group:
        return generate(args, path, group)


def generate(args, path, group):
    """Check what is asked for against the checkpoint, sample, write.  Several processes share the batches."""
    painter = Painter.open(path, group.device, args.weights, args.seed, args.compile)
    config = painter.config

    steps = cli.check_level("--steps", args.steps or sampling.usual_steps(args.sampler, config), painter.T)
    options = {name: getattr(args, name) for name in sampling.options_of(args.sampler)}
    if "eta" in options and args.eta is None:
        options["eta"] = config.sample.eta
    sampling.check_variance(options.get("variance"), config, path)
    guidance = painter.usual_guidance(args.guidance, painter.find_label(args.label) is not None)
    timesteps, of_sampler = sampling.plan(painter.schedule, steps, options)

    frames = pictures.evenly(0, steps, FRAMES) if args.gif else []
    columns = pictures.evenly(1, steps, sampling.STAGES) if args.strip else []
    shown = min(args.n, args.batch_size, SHOWN)
    at_once = max(min(args.n, GRID), shown * len(frames), min(shown, 4) * 2 * len(columns))  # a GIF is made whole
    cli.check_upscale(args.upscale, at_once * config.data.channels * math.prod(config.data.size))

    out = Path(args.out or Path("out") / args.sampler)
    group.main_only(lambda: outputs.prepare(out, {"sampler": args.sampler, "n": args.n}, names))
    if group.main:
        print(painter.origin)
        compiled = ", compiled" if args.compile else ""
        what = "stages shown" if sampling.chooses_its_steps(args.sampler) else "steps"
        print(f"{args.sampler}, {steps} {what}, {group.device}, {args.precision}{compiled}")

    def walk(numbers):
        how = {"label": args.label, "guidance": guidance, "clip": not args.no_clip}
        return painter.walk(args.sampler, numbers, timesteps, of_sampler, **how)

    batches, stages, most = sample(args, painter, group, walk, steps, {*frames, *columns})
    shares = group.gather((batches, most))
    if not group.main:
        return 0
    batches = {start: images for share, _ in shares for start, images in share.items()}
    evaluations = max(most for _, most in shares)
    settings = {
        "checkpoint": str(path), "checkpoint_sha256": painter.digest, "step": painter.step,
        "weights": args.weights, "sampler": args.sampler,
        "steps": steps, "evaluations": evaluations, **options, "n": args.n, "seed": args.seed,
        "label": args.label, "guidance": guidance, "batch_size": args.batch_size, "clip": not args.no_clip,
        "upscale": args.upscale, "device": str(group.device), "processes": group.world,
        "precision": args.precision, "compile": args.compile, "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }  # fmt: skip
    print(f"{evaluations:,} network evaluations a picture")
    images = torch.cat([batches[start] for start in sorted(batches)])
    write(out, images, [stages[i] for i in frames], [stages[i] for i in columns], args.upscale, settings)
    return 0


def sample(args, painter, group, walk, steps, wanted):
    """This process's share: {number of its first picture: batch of pictures}, the `wanted` stages of those shown,
    and the most network evaluations that a picture took (`ode` chooses its steps for each batch).

    Every batch is full: the last is padded with the numbers that would come next.  So the bytes do not depend on n.
    wanted: stages 0..steps; stage 0 is the noise.  They come as {stage: (x, x0-hat)}.
    """
    shown = min(args.n, args.batch_size, SHOWN)
    starts = range(0, args.n, args.batch_size)[group.rank :: group.world]
    batches, stages, most = {}, {}, 0
    hidden = None if group.main else True  # None: shown on a terminal
    bar = tqdm(total=len(starts) * steps, unit="step", disable=hidden, dynamic_ncols=True)
    with bar, machine.autocast(group.device, args.precision):
        for start in starts:
            x, on_the_way, calls = walk(range(start, start + args.batch_size))
            if start == 0:
                stages[0] = (to_uint8(x[:shown]).cpu(), None)
            for i, step in enumerate(on_the_way, 1):
                if start == 0 and i in wanted:
                    stages[i] = (to_uint8(step.x[:shown]).cpu(), to_uint8(step.x0[:shown]).cpu())
                bar.set_postfix(evaluations=len(calls), refresh=False)
                bar.update(1)
            batches[start] = to_uint8(painter.finished(step.x[: args.n - start])).cpu()
            most = max(most, len(calls))
    return batches, stages, most


def names(settings):
    """Names of the files that these settings go with; none if another program wrote them."""
    if settings["sampler"] not in SAMPLERS or "command" in settings:  # edit.py has both
        return set()
    return {"settings.json", "grid.png", "denoising.gif", "strip.png", *outputs.numbered(settings["n"])}


def write(out, images, frames, columns, k, settings):
    """Write the settings, n PNGs, the grid, the GIF of the frames and the strip of the columns, if any."""
    with outputs.replaced(out, settings, names) as new:
        for i, image in enumerate(images):
            put(new / f"{i:05d}.png", pictures.save_png, pictures.upscale(image, k), flush=False)  # easily drawn again
        put(new / "grid.png", pictures.save_png, pictures.grid(pictures.upscale(images[:GRID], k)))
        if frames:
            film = [pictures.grid(pictures.upscale(x, k)) for x, _ in frames]
            put(new / "denoising.gif", pictures.save_gif, film)
        if columns:
            # for each of the first 4 pictures a row of its stages, and one of x0-hat below
            stages = [torch.stack([x[:4], x0[:4]], dim=1).flatten(0, 1) for x, x0 in columns]
            strip = pictures.strip([pictures.upscale(stage, k) for stage in stages])
            put(new / "strip.png", pictures.save_png, strip)
    more = [name for name, there in (("denoising.gif", frames), ("strip.png", columns)) if there]
    print(f"{len(images):,} picture{'s' if len(images) > 1 else ''}, {', '.join(['grid.png', *more])} in {out}")


if __name__ == "__main__":
    sys.exit(cli.run(main))
