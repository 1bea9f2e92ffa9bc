"""Measure a checkpoint:  python evaluate.py fid|kid|bpd|loglik|nearest|speed|sweep [--ckpt last|best|PATH] [-n N]

Every command is a function in measures/, says by which protocol it measured, and writes that beside its figures.
Several processes share the work: torchrun --nproc-per-node=N evaluate.py ...  Read next: measures/subject.py.
"""

import contextlib
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

import cli
import processes
import sampling
from config import UserError
from dataset import reference
from diffusion.samplers import SAMPLERS
from evaluation import features
from files import put
from measures.copies import nearest
from measures.distance import ENOUGH, fid, kid, sweep
from measures.likelihood import bpd, loglik
from measures.speed import STEPS, speed
from measures.subject import Subject
from outputs import claimed
from painter import Painter

# Options by what a measure does: flag -> how it is declared.
OWN = "default: the checkpoint's own"
REAL = {  # looks at real images, in batches
    "--batch-size": {"type": cli.whole(1), "default": 16, "metavar": "B", "help": "at once (default 16)"},
    "--data": {"type": cli.place, "metavar": "SOURCE", "help": f"real images, a source or PATH ({OWN})"},
}
DRAWS = {"--guidance": {"type": cli.number(), "metavar": "S", "help": OWN}}  # draws pictures ...
ONE = {  # ... by one sampler
    "--sampler": {"choices": tuple(SAMPLERS), "default": "ddim", "help": "default ddim"},
    "--steps": {"type": cli.whole(1), "metavar": "N", "help": f"noise levels ({OWN}, also for ddpm; 1 for ode)"},
    "--eta": {"type": cli.number(), "help": f"of ddim ({OWN})"},
}
_samplers, _counts = cli.several(cli.one_of(SAMPLERS)), cli.several(cli.whole(1))
MANY = {  # ... by several samplers, each with several numbers of steps
    "--samplers": {"type": _samplers, "default": tuple(SAMPLERS), "metavar": "A,B", "help": "default: all"},
    "--steps": {"type": _counts, "metavar": "N,N", "help": f"default {','.join(map(str, STEPS))}; not for ode"},
    "--eta": {"type": cli.number(), "help": "of ddim (default 0)"},
}
BPD = {
    "--variance": sampling.OPTIONS["ddpm"]["variance"],
    "--levels": {"type": cli.whole(1), "default": 100, "metavar": "K",
                 "help": "levels measured, drawn once a batch; the ± is over the images alone (default 100)"},
}  # fmt: skip
LOGLIK = {
    "--probes": {"type": cli.whole(1), "default": 1, "metavar": "K", "help": "random probes of an image (default 1)"},
    "--tol": {"type": cli.number(1e-5), "default": 1e-3, "help": "largest error of a step (default 1e-3)"},
}


def split(usual):
    """The option of those that look at a part of the real images."""
    return {"--split": {"choices": reference.SPLITS, "default": usual, "help": f"of the data (default {usual})"}}


def compared(usual):
    """The options of those that compare features of pictures with those of real images."""
    what = {"choices": features.NAMES, "default": usual, "help": f"what is compared (default {usual})"}
    file = {"type": cli.place, "metavar": "PATH", "help": "Inception's weights, instead of downloading them"}
    return {**split("train"), "--features": what, "--weights-file": file}


class Measure(NamedTuple):
    """work: (subject, args, out) -> (protocol, figures), see measures/subject.py.  n: images, by default.

    files: what it writes beside COMMAND.json.
    """

    work: Callable
    n: int
    options: dict
    files: tuple = ()


MEASURES = {
    "fid": Measure(fid, ENOUGH, {**REAL, **compared("inception"), **DRAWS, **ONE}),
    "kid": Measure(kid, ENOUGH, {**REAL, **compared("inception"), **DRAWS, **ONE}),
    "bpd": Measure(bpd, 64, {**REAL, **split("val"), **BPD}, ("by_t.csv", "by_image.csv")),
    "loglik": Measure(loglik, 32, {**REAL, **split("val"), **LOGLIK}, ("by_image.csv",)),
    "nearest": Measure(nearest, 256, {**REAL, **DRAWS, **ONE}, ("nearest.csv", "nearest.png")),
    "speed": Measure(speed, 16, {**DRAWS, **MANY}, ("speed.csv",)),
    "sweep": Measure(sweep, 256, {**REAL, **compared("random"), **DRAWS, **MANY}, ("sweep.csv", "sweep.png")),
}


def parser():
    """The command line: one subcommand a measure."""
    p = cli.Parser(prog="evaluate.py", description=__doc__.split("\n")[0])
    commands = p.add_subparsers(dest="command", metavar="|".join(MEASURES), required=True)
    for name, measure in MEASURES.items():
        s = commands.add_parser(name, prog=f"evaluate.py {name}", help=measure.work.__doc__.split("\n")[0])
        cli.add_checkpoint(s)
        least = 1 if name == "speed" else 2
        s.add_argument("-n", type=cli.whole(least, 2**24), default=measure.n, help=f"images (default {measure.n:,})")
        s.add_argument("--out", type=cli.place, metavar="DIR", help=f"folder for the figures (default out/{name})")
        for flag, declared in measure.options.items():
            s.add_argument(flag, **declared)
        if "--guidance" in measure.options:
            cli.add_running(s)
    return p


def refuse_unused_eta(args):
    """Raise UserError if --eta is given where no sampler has it."""
    if getattr(args, "eta", None) is not None:
        samplers = args.samplers if "samplers" in args else (args.sampler,)
        if not any(sampling.has(sampler, "eta") for sampler in samplers):
            have = "has" if len(samplers) == 1 else "have"
            raise UserError(f"--eta {args.eta:g}: {' and '.join(samplers)} {have} none; leave it out, or take ddim")


def subject_of(args, path, group):
    """The Subject that the command line asks for."""
    painter = Painter.open(path, group.device, args.weights, args.seed, getattr(args, "compile", False))
    guidance = painter.usual_guidance(getattr(args, "guidance", None), bool(painter.classes))
    if getattr(args, "data", None) is not None:
        data = replace(painter.config.data, source=args.data)
        painter = replace(painter, config=replace(painter.config, data=data), trained_on=None)
    size = getattr(args, "batch_size", args.n)  # `speed`, which has none, draws all at once
    precision = getattr(args, "precision", "fp32")
    return Subject(**vars(painter), group=group, batch_size=size, guidance=guidance, precision=precision)


def report(subject, args, protocol, figures):
    """What COMMAND.json holds: the figures, and how they were measured."""
    common = {
        "checkpoint": str(subject.path), "checkpoint_sha256": subject.digest, "step": subject.step,
        "weights": args.weights, "device": str(subject.device), "processes": subject.group.world,
        "torch": torch.__version__, "n": args.n, "seed": args.seed, "batch_size": subject.batch_size,
        **{name: getattr(args, name) for name in ("precision", "compile") if name in args},
    }  # fmt: skip
    return {"figures": figures, "protocol": {**common, **protocol}}


def main(argv):
    """Run the program with these arguments; returns the exit code."""
    args = parser().parse_args(argv)
    refuse_unused_eta(args)
    path = cli.find_checkpoint(args.ckpt, args.preset)
    if args.command != "speed":  # a figure is of float32 on a GPU too, whose convolutions would round to TF32
        torch.backends.cudnn.allow_tf32 = False
    with processes.joined(args.device) as group, contextlib.ExitStack() as held:
        subject = subject_of(args, path, group)
        out = Path(args.out or Path("out") / args.command)
        names = {f"{args.command}.json", *MEASURES[args.command].files}
        group.main_only(lambda: held.enter_context(claimed(out, names)))
        if group.main:
            print(f"{subject.origin}, {group.device}")
        with torch.no_grad():
            protocol, figures = MEASURES[args.command].work(subject, args, out)
        if group.main:
            text = json.dumps(report(subject, args, protocol, figures), indent=2) + "\n"
            put(out / f"{args.command}.json", Path.write_text, text)
            print("protocol  " + ", ".join(f"{k} {_short(v)}" for k, v in protocol.items() if not isinstance(v, dict)))
            print(f"written   {out}/{args.command}.json")
        return 0


def _short(value):
    return str(value)[:12] if isinstance(value, str) and len(value) == 64 else str(value)


if __name__ == "__main__":
    sys.exit(cli.run(main))
