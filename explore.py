"""Look at diffusion:  python explore.py forward|denoise|steps|morph|attention|... [--ckpt PATH] [--out DIR]

One command for each concept: it draws one figure and says in two sentences what to look for.  `app` serves a
page to denoise and morph by hand.  A lesson is a function of the lab and its options in lessons/; its docstring is the
text that it prints, its signature its command line.  Read next: lessons/lab.py.
"""

import inspect
import sys
import textwrap
from pathlib import Path

import cli
import machine
from config import UserError
from dataset import pictures
from files import is_ours, put
from lessons import between, figure, network, noise, walks
from lessons.lab import Lab
from outputs import claimed

LESSONS = {
    lesson.__name__: lesson
    for lesson in (
        noise.forward, noise.schedules, walks.denoise, walks.steps, walks.samplers, walks.eta, walks.seeds,
        between.morph, between.interpolate, walks.guidance, noise.loss, network.attention, network.memorise,
    )
}  # fmt: skip


# every option that a lesson may have in its signature: its type, and what it means
OPTIONS = {
    "along": (cli.one_of(between.PATHS), "slerp (arc) or lerp (straight line)"),
    "counts": (cli.several(cli.whole(1)), "numbers of steps, besides the full chain's T (default: 5 to 250)"),
    "data": (cli.place, "folder or zip of real images (default: what the checkpoint was trained on)"),
    "draws": (cli.whole(1, 16), "rows: draws of the noise on the way"),
    "etas": (cli.several(cli.number()), "values of eta"),
    "frames": (cli.whole(2), "frames of the film"),
    "guidance": (cli.number(), "1 = conditional, 0 = unconditional (default: the checkpoint's own)"),
    "images": (cli.whole(1), "pictures to average over"),
    "label": (str, "class: a name, a number or none (default: all in turn)"),
    "layer": (str, "attention layer, by its name in the network"),
    "level": (cli.whole(1), "noise level t"),
    "levels": (cli.several(cli.whole(0)), "noise levels t (default: evenly spread)"),
    "n": (cli.whole(1, 64), "pictures, or seeds"),
    "neighbours": (cli.whole(1, 16), "nearest training pictures to show"),
    "other": (cli.whole(0), "number of the second held-out picture"),
    "picture": (cli.whole(0), "number of the held-out picture"),
    "places": (cli.whole(1, 8), "pixels whose attention is shown"),
    "points": (cli.whole(2), "noise levels to measure"),
    "scales": (cli.several(cli.number()), "guidance scales"),
    "seeds": (cli.several(cli.whole(0)), "two seeds or more; 0,1,0 comes back"),
    "steps": (cli.whole(1), "steps of a walk (default: the checkpoint's own)"),
    "upscale": (cli.whole(1, 64), "each pixel becomes K x K"),
    "mixtures": (cli.whole(2, 12), "mixtures to show"),
}


def options(lesson):
    """{option: default} of a lesson, from its signature."""
    return {name: p.default for name, p in inspect.signature(lesson).parameters.items() if name != "lab"}


def parser():
    """The command line: one subcommand a lesson, and app."""
    p = cli.Parser(prog="explore.py", description=__doc__.split("\n")[0])
    names = [*LESSONS, "app"]
    commands = p.add_subparsers(dest="lesson", metavar="|".join(names), required=True)
    for name, lesson in LESSONS.items():
        summary = inspect.getdoc(lesson).split("\n")[0]
        s = commands.add_parser(name, prog=f"explore.py {name}", help=summary, description=inspect.getdoc(lesson))
        cli.add_checkpoint(s, draws=name not in ("schedules", "morph"))  # the one draws nothing, the other has --seeds
        s.add_argument(
            "--out", type=cli.place, metavar="DIR", default="out/explore", help="folder (default out/explore)"
        )
        for option, default in options(lesson).items():
            kind, text = OPTIONS[option]
            if default not in (None, ()):
                shown = ",".join(map(str, default)) if isinstance(default, tuple) else default
                text += f" (default {shown})"
            flag = f"-{option}" if len(option) == 1 else f"--{option.replace('_', '-')}"
            many = {"metavar": "A,B,..."} if isinstance(default, tuple) else {}
            s.add_argument(flag, dest=option, type=kind, default=default, help=text, **many)
    s = commands.add_parser("app", prog="explore.py app", help="denoise and morph on a web page on this machine")
    cli.add_checkpoint(s)
    s.add_argument(
        "--port", type=cli.whole(0, 65535), default=8000, help="of http://127.0.0.1 (default 8000; 0: any free one)"
    )
    return p


def main(argv):
    """Run the program with these arguments; returns the exit code."""
    args = parser().parse_args(argv)
    path = cli.find_checkpoint(args.ckpt, args.preset)
    device = machine.use_device(args.device)
    if args.lesson == "app":
        from lessons import app

        return app.serve(path, device, args.weights, args.seed, args.port)
    lesson = LESSONS[args.lesson]
    if is_ours(args.out):  # a run has a loss.png, too
        raise UserError(f"--out {args.out}: it holds a run; choose another folder")
    lab = Lab.open(path, device, args.weights, args.seed)
    ending, save = (".gif", pictures.save_gif) if lesson is between.morph else (".png", figure.save_png)
    out = Path(args.out) / f"{args.lesson}{ending}"
    with claimed(out.parent, {out.name}), figure.style():
        print(lab.origin)
        result = lesson(lab, **{name: getattr(args, name) for name in options(lesson)})
        put(out, save, result)
    print(what_to_look_for(lesson))
    print(out)
    return 0


def what_to_look_for(lesson):
    """The two sentences of a lesson: its docstring without the first paragraph."""
    return textwrap.fill(" ".join(inspect.getdoc(lesson).split("\n\n")[1].split()), 100)


if __name__ == "__main__":
    sys.exit(cli.run(main))
