"""Train a diffusion model:  python main.py [--preset NAME] [--data PATH] [--train.lr 2e-4 ...]

Parses the command line, builds the run, hands over to trainer.py.  Every field of config.py is a flag by its dotted
name.  Read next: trainer.py.
"""

import argparse
import contextlib
import os
import shlex
import sys
import tempfile
import textwrap
from dataclasses import replace
from pathlib import Path

import torch

import cli
import machine
import processes
import resume
from board import Board
from check import check
from config import (
    ABOUT,
    PRESETS,
    UserError,
    attended,
    did_you_mean,
    field_types,
    override,
    parse_value,
    to_dict,
    to_text,
)
from dataset import pictures, sources
from files import is_ours, locked, put
from models import checkpoint
from outputs import claimed
from trainer import Trainer

DEFAULT = "textiles"  # the preset
PICTURES = 64  # in the grid of --verify
WRITES = ("config.json", "metrics.csv", "loss.png", "samples")  # in the run folder, besides checkpoints


def parser():
    """The command line."""
    p = cli.Parser(prog="main.py", description=__doc__.split("\n")[0], epilog=_fields())
    p.add_argument("--preset", metavar="NAME", help=f"what to train (default {DEFAULT}; see --list-presets)")
    p.add_argument("--list-presets", action="store_true", help="say what each preset is, and stop")
    p.add_argument("--data", type=cli.place, metavar="PATH", help="folder or zip of images; short for --data.source")
    p.add_argument(
        "--out", type=cli.place, metavar="DIR", help="run folder (default ckpt/PRESET); of --verify: of its grid"
    )
    p.add_argument("--resume", action="store_true", help="go on with the run in the run folder")
    p.add_argument("--dry-run", action="store_true", help="two steps of everything in a temporary folder, and stop")
    what = "write the averaged weights of the run, small, to share; and stop"
    p.add_argument("--export", type=cli.place, metavar="FILE", help=what)
    p.add_argument("--verify", action="store_true", help="check the data, show a grid of it, and stop")
    cli.add_device(p)
    precisions = ("auto", "fp32", "bf16", "fp16")
    p.add_argument("--precision", default="auto", choices=precisions, help="auto: bf16 on a GPU that has it, or fp32")
    p.add_argument("--compile", action="store_true", help="torch.compile the network: minutes at first, then faster")
    p.add_argument("--tensorboard", action="store_true", help="also log to the run folder for TensorBoard")
    for name in field_types():
        p.add_argument(f"--{name}", metavar="VALUE", help=argparse.SUPPRESS)
    return p


def _fields():
    """The fields of the config and their defaults, for --help."""
    lines = ["fields of the config (config.py explains each), with the values of the default preset:"]
    for section, values in to_dict(PRESETS[DEFAULT]).items():
        if isinstance(values, dict):
            text = ", ".join(f"--{section}.{k}\0{shlex.quote(to_text(v))}" for k, v in values.items())
            lines += textwrap.wrap(text, 110, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)
    return "\n".join(lines).replace("\0", " ")  # so that no line ends between a flag and its value


def chosen(args):
    """{"train.lr": 2e-4, ...}: the fields that the command line sets."""
    values = {n: parse_value(n, text) for n in field_types() if (text := getattr(args, n)) is not None}
    for one, other in (("train.epochs", "train.steps"), ("data.source", "data")):
        if one in values and getattr(args, other) is not None:
            raise UserError(f"--{one} and --{other} are two ways to say one thing; leave one of the two out")
    if args.data is not None:
        values["data.source"] = args.data
    return values


def run_folder(args):
    """Where the run is, or will be; with --verify, which makes none, where its grid goes."""
    return Path(args.out or (Path("out") / "verify" if args.verify else Path("ckpt") / (args.preset or DEFAULT)))


def configure(args):
    """(config, state, folder) of the run that the command line asks for; state is what --resume found, or None."""
    values, state, folder = chosen(args), None, run_folder(args)
    if args.resume and args.dry_run:
        raise UserError("--dry-run starts a run of its own and keeps nothing: leave out --resume")
    if args.resume and args.verify:
        raise UserError("--verify shows what a new run would see: leave out --resume")
    if args.resume:
        if not (folder / "last.pth").exists() and not (folder / "best.pth").exists():
            check_free(folder)  # else there would be no starting without --resume either
        config, state = resume.found(folder)
        resume.refuse_changes(config, values, args.preset, folder)
    else:
        if not args.dry_run and not args.verify:
            check_free(folder)
        config = PRESETS[args.preset or DEFAULT]
    config = override(config, values)
    source = config.data.source
    pictures_in = Path(os.path.realpath(os.path.expanduser(source)))  # pathlib's own fail at ~nobody and looped links
    is_folder = source and source not in sources.NAMES and pictures_in.is_dir()  # a name wins over a folder called so
    if is_folder and Path(os.path.realpath(folder)).is_relative_to(pictures_in):
        raise UserError(f"{folder} lies in the data, {source}: the samples would become data; choose --out DIR")
    return config, state, folder


def check_free(folder):
    """A new run never overwrites another, nor what is left of one, nor files that no run has written."""
    if (folder / "last.pth").exists():
        raise UserError(f"{folder} holds a run: go on with it by --resume, or choose another folder with --out DIR")
    if (folder / "best.pth").exists():
        raise UserError(f"{folder}/best.pth would be replaced: choose another folder with --out DIR, or move it away")
    foreign = [] if is_ours(folder) else [name for name in WRITES if (folder / name).exists()]
    if foreign:
        raise UserError(
            f"{folder}/{foreign[0]} was not written by a run, and would be replaced; choose another with --out DIR"
        )


def fit_classes(config, images, asked):
    """`config` with as many classes as the data has, if the preset wants any and the user did not ask otherwise.

    asked: {field: value} of the command line.
    """
    wanted, found = config.model.num_classes, len(images.classes)
    if wanted and wanted != found:
        if "model.num_classes" in asked:
            has = f"{found} classes" if found else "no class subfolders"
            raise UserError(f"--model.num_classes {wanted}: the data has {has}; use {found}, or leave it out")
        unguided = {} if found else {"sample.guidance": asked.get("sample.guidance", 1.0)}
        config = override(config, {"model.num_classes": found, **unguided})
    return config


def shrink(config):
    """`config` cut down to two steps, walks of two steps, and eight images to validate on, for --dry-run."""
    train = replace(config.train, steps=2, epochs=0, eval_every=1, val_images=8)
    train = replace(train, distance_images=min(8, train.distance_images))
    sample = replace(config.sample, steps=min(2, config.diffusion.T))  # as many pictures as ever: their memory counts
    return replace(config, train=train, sample=sample)


def verify(config, images, train, folder):
    """Print what the data is, write a grid of it into the folder, and say what was damaged."""
    for reason in images.skipped:
        print(f"skipped   {reason}")
    for label, name in enumerate(images.classes):
        print(f"class     {label:>3}  {name}: {(images.labels == label).sum():,} images")
    path = folder / f"{config.name}.png"
    some = images.pixels[train[pictures.evenly(0, len(train) - 1, PICTURES)]]  # a folder's lie class by class
    shown = pictures.upscale(torch.from_numpy(some), pictures.readable_scale(config.data.size))
    with claimed(folder, {path.name}):
        put(path, pictures.save_png, pictures.grid(shown))
    print(f"grid      {path}")


def export(args):
    """Write what is needed for sampling, in half precision, from the run's best.pth."""
    best = run_folder(args) / "best.pth"
    others = ("resume", "verify", "dry-run", "compile", "tensorboard", "data", *field_types())
    other = next((flag for flag in others if getattr(args, flag.replace("-", "_")) not in (None, False)), None)
    if other:
        raise UserError(f"--export {args.export} does nothing else: leave out --{other}")
    if not best.exists():
        raise UserError(f"there is no {best} yet: train first, or name the run by --preset or --out")
    if Path(args.export).exists():
        raise UserError(f"--export {args.export}: it exists already; choose another name, or move it away")
    checkpoint.slim(best, args.export)
    print(f"{args.export}: the averaged weights of {best} in half precision, SHA-256 {checkpoint.digest(args.export)}")
    return 0


def list_presets():
    """Print every preset, its size, its data and what the run takes."""
    for name, config in PRESETS.items():
        train = config.train
        budget = f"{train.steps:,} steps" if train.steps else f"{train.epochs:,} epochs"
        height, width = config.data.size
        print(f"{name}\n    {height}x{width} pixels, {budget} of {config.train.images_a_step} images")
        print(textwrap.indent(textwrap.fill(ABOUT[name], 100), "    "))


def main(argv):
    """Run the program with these arguments; returns the exit code."""
    args = parser().parse_args(argv)
    if args.list_presets:
        return list_presets()
    if args.preset not in (None, *PRESETS):
        raise UserError(
            f"--preset {args.preset}: unknown{did_you_mean(args.preset, PRESETS)}; --list-presets shows all"
        )
    if args.export is not None:
        return export(args)
    with processes.joined(args.device) as group:
        config, state, folder = configure(args)
        return train_run(args, check(config), state, folder, group)


def read_data(args, config, group, say):
    """(config, images, train, val): what to learn from and what to validate on, and the config that fits the data."""
    d = config.data
    images = group.main_first(
        lambda: sources.load(d.source, size=d.size, channels=d.channels, count=d.count, seed=d.seed)
    )
    wanted = config.model.num_classes
    config = check(fit_classes(config, images, asked=chosen(args)))
    train, val = sources.split(images, d.val_fraction, d.seed)
    shape = "x".join(str(n) for n in (*d.size, d.channels))
    say(f"data      {images.name}: {images.summary()}; {shape}, {len(train):,} to train, {len(val):,} to validate")
    if wanted and not images.classes:
        say("classes   none in the data: subfolders are classes only if no picture lies beside them")
    return config, images, train, val


def train_run(args, config, state, folder, group):
    """Load the data, build the trainer, train."""
    say = print if group.main else lambda *_: None
    if not args.verify and not args.dry_run:
        say(f"run       {folder}")
    config, images, train, val = read_data(args, config, group, say)
    if args.verify:
        return verify(config, images, train, folder) if group.main else None

    with contextlib.ExitStack() as held:
        if args.dry_run:
            config, folder = shrink(config), Path(held.enter_context(tempfile.TemporaryDirectory()))
        group.main_only(lambda: held.enter_context(locked(folder)))
        # Once more, now that nobody else can write: another may have been here meanwhile.
        group.main_only(lambda: check_free(folder) if state is None else resume.refuse_stale(folder, state))
        board = Board(folder / "tensorboard") if args.tensorboard and group.main else None
        trainer = Trainer(config, images, train, val, folder, group, args.precision, args.compile, board)
        if group.main:
            describe(trainer)
        if state is not None:
            resume.go_on(trainer, state)
            state.clear()  # as much memory as the weights and the optimiser take
            say(f"resumed   at step {trainer.step:,}")
        if trainer.finished:
            if group.main:  # it may have been killed after its last checkpoint, before its last views
                trainer.tidy()
                trainer.write_views()
            raise UserError(
                f"{folder} is finished: {trainer.step:,} steps made, {trainer.steps:,} asked for; "
                "more with a larger --train.steps N"
            )
        if group.main:
            trainer.open_folder()
        group.wait()
        try:
            trainer.fit()
        except KeyboardInterrupt:
            if args.dry_run or trainer.saved is None:
                say("\nstopped; nothing was kept")
            else:
                say(f"\nstopped at step {trainer.saved:,}; go on with: {_again(args)}")
            return 130
        if args.dry_run and group.main:
            dry_sample(config, folder, group.device)
    say(f"memory    {machine.peak_memory(group.device):.1f} GiB at most")
    if args.dry_run:
        say("dry run   trained, validated, saved, loaded and sampled; nothing was kept")
    else:
        say(f"more      python generate.py ddim --ckpt {shlex.quote(f'{folder}/best.pth')}")
        say(f"run       {folder}: last.pth, best.pth, metrics.csv, loss.png, samples/")
    return 0


def describe(trainer):
    """Print what is trained, where, and for how long."""
    model, images = trainer.config.model, trainer.config.train.images_a_step
    parameters = sum(p.numel() for p in trainer.model.parameters())
    classes, levels = model.num_classes or "no", ", ".join(map(str, attended(trainer.config))) or "no level"
    print(f"network   U-Net, {parameters:,} parameters, {classes} classes, attention at {levels}")
    many = f", {trainer.group.world} processes" if trainer.group.world > 1 else ""
    compiled = "compiled" if trainer.compiled else "not compiled"
    print(f"device    {trainer.device}, {trainer.precision}, {compiled}{many}")
    epochs = trainer.steps * images / len(trainer.batches.indices)
    print(f"budget    {trainer.steps:,} steps of {images} images = {epochs:,.1f} epochs")
    if (warmup := trainer.config.train.warmup_steps) >= trainer.steps > 1:
        print(f"warning: --train.warmup_steps {warmup:,}: it never reaches its learning rate", file=sys.stderr)


def dry_sample(config, folder, device):
    """What generate.py would do with the checkpoint of the dry run, in this process alone.

    A batch is no larger than in training, so that the peak of memory that is reported is the training's.
    """
    import generate

    at_once = min(generate.WORK, config.train.batch_size)
    flags = ["-n", "1", "--batch-size", str(at_once), "--steps", str(config.sample.steps), "--out", str(folder / "out")]
    args = generate.parser().parse_args(["ddim", *flags])
    generate.generate(args, folder / "last.pth", processes.Processes(0, 1, device))


def _again(args):
    """The command that finds the run and goes on in the same way: it has the flags that no checkpoint holds."""
    words = ["python", "main.py"]
    for name, usual in (("preset", None), ("out", None), ("device", "auto"), ("precision", "auto")):
        if (value := getattr(args, name)) != usual:
            words += [f"--{name}", value]
    words += [f"--{name}" for name in ("compile", "tensorboard") if getattr(args, name)]
    return shlex.join([*words, "--resume"])


if __name__ == "__main__":
    sys.exit(cli.run(main))
