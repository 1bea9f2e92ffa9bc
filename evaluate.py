"""Measure a checkpoint:  python evaluate.py fid|kid|bpd|loglik|nearest|speed|sweep [--ckpt last|best|PATH] [-n N]

Every command is a function in measures/, says by which protocol it measured, and writes that beside its figures.
Several processes share the work: torchrun --nproc-per-node=N evaluate.py ...  Read next: measures/subject.py.
"""

import contextlib
import json
import sys
from dataclasses import replace
from pathlib import Path

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
from models import checkpoint
from outputs import claimed
from painter import Painter

COMMANDS = {"fid": fid, "kid": kid, "bpd": bpd, "loglik": loglik, "nearest": nearest, "speed": speed, "sweep": sweep}
FILES = {  # that a command writes beside COMMAND.json
    "bpd": ("by_t.csv",), "loglik": ("by_image.csv",), "nearest": ("nearest.csv", "nearest.png"),
    "speed": ("speed.csv",), "sweep": ("sweep.csv", "sweep.png"),
}  # fmt: skip
IMAGES = {  # by default
    "fid": ENOUGH, "kid": ENOUGH, "bpd": 64, "loglik": 32, "nearest": 256, "speed": 16, "sweep": 256,
}  # fmt: skip


def parser():
    """The command line: one subcommand a measurement."""
    p = cli.Parser(prog="evaluate.py", description=__doc__.split("\n")[0])
    commands = p.add_subparsers(dest="command", metavar="|".join(COMMANDS), required=True, parser_class=cli.Parser)
    for name, command in COMMANDS.items():
        s = commands.add_parser(name, prog=f"evaluate.py {name}", help=command.__doc__.split("\n")[0])
        cli.add_checkpoint(s)
        n = IMAGES[name]
        s.add_argument("-n", type=cli.whole(1 if name == "speed" else 2), default=n, help=f"images (default {n:,})")
        s.add_argument("--out", type=cli.place, metavar="DIR", help=f"folder for the figures (default out/{name})")
        if name != "speed":  # which draws all at once
            s.add_argument("--batch-size", type=cli.whole(1), default=16, metavar="B", help="at once (default 16)")
            s.add_argument(
                "--data",
                type=cli.place,
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
            s.add_argument(
                "--weights-file",
                type=cli.place,
                metavar="PATH",
                help="Inception's weights, instead of downloading them",
            )
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
    with processes.joined(args.device) as group, contextlib.ExitStack() as held:
        size = args.n if args.command == "speed" else args.batch_size
        running = {name: getattr(args, name) for name in ("precision", "compile") if name in args}
        painter = Painter.open(path, group.device, args.weights, args.seed, running.get("compile", False))
        guidance = painter.usual_guidance(getattr(args, "guidance", None), bool(painter.classes))
        if args.command != "speed" and args.data is not None:
            data = replace(painter.config.data, source=args.data)
            painter = replace(painter, config=replace(painter.config, data=data))
        precision = running.get("precision", "fp32")
        subject = Subject(**vars(painter), group=group, batch_size=size, guidance=guidance, precision=precision)
        out = Path(args.out or Path("out") / args.command)
        names = {f"{args.command}.json", *FILES.get(args.command, ())}
        group.main_only(lambda: held.enter_context(claimed(out, names)))
        if group.main:
            print(f"{painter.origin}, {group.device}")
        with torch.no_grad():
            protocol, figures = COMMANDS[args.command](subject, args, out)
        if group.main:
            common = {
                "checkpoint": str(path), "checkpoint_sha256": checkpoint.digest(path), "step": painter.step,
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


if __name__ == "__main__":
    sys.exit(cli.run(main))
