"""What do all the programs' command lines have in common?

How they fail: in one line that says what to type, with exit code 2 (`--debug` shows where).  How they name a
checkpoint and a class.
"""

import argparse
import math
import os
import re
import signal
import sys
import time
import warnings
from pathlib import Path

import machine
from config import PRESETS, UserError, did_you_mean

ENLARGED = 2**30  # bytes of a figure that --upscale enlarges, at most; writing it takes about three times that
SHIPPED = Path(__file__).resolve().parent / "assets" / "textiles.pth"


class Parser(argparse.ArgumentParser):
    """argparse, but an error is one line with the nearest valid flag, and flags are never abbreviated."""

    def __init__(self, **kwargs):
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs)
        self._negative_number_matcher = re.compile(r"-\.?\d")  # argparse's own takes -1e-4 for a flag
        self.add_argument("--debug", action="store_true", help="show the traceback of an error")  # `run` looks for it

    def error(self, message):
        wrong = re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message)
        hint = did_you_mean(wrong[1], re.findall(r"[\w-]+", wrong[2])) if wrong else ""
        raise UserError(f"{message}{hint}; {self.prog} --help lists everything")

    def parse_args(self, args=None, namespace=None):
        args = sys.argv[1:] if args is None else args
        commands = self.commands()
        if commands and args and args[0].startswith("-") and args[0] not in self._option_string_actions:
            self.error(f"{args[0]}: the command comes first, one of {', '.join(commands)}")
        found, unknown = self.parse_known_args(args, namespace)
        if unknown:
            chosen = commands.get(args[0], self)  # its flags are those meant, and its --help is the one to read
            word = next((u for u in unknown if u.startswith("-")), unknown[0]).split("=")[0]
            flags = chosen._option_string_actions
            fields = [flag for flag in flags if flag.endswith(f".{word.lstrip('-')}")]  # --lr for --train.lr
            others = [name for name, command in commands.items() if word in command._option_string_actions]
            hint = f" (did you mean {fields[0]}?)" if fields else did_you_mean(word, flags)
            hint = f" here: it is for {', '.join(others)}" if others else hint
            chosen.error(f"unknown argument {word}{hint}")
        return found

    def commands(self):
        """{name: parser} of its subcommands, if it has any."""
        found = [a.choices for a in self._actions if isinstance(a, argparse._SubParsersAction)]
        return found[0] if found else {}


def whole(low, high=None):
    """An argparse type: a whole number in low..high."""

    def parse(text):
        try:
            value = int(text)
        except ValueError:
            value = None
        if value is None or value < low or (high is not None and value > high):
            limits = f"of at least {low}" if high is None else f"from {low} to {high}"
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number {limits}")
        return value

    return parse


def number(low=0.0, below=float("inf")):
    """An argparse type: a number of at least `low` and less than `below`."""

    def parse(text):
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not low <= value < below:
            limits = f"of at least {low:g}" + (f" and below {below:g}" if below < float("inf") else "")
            raise argparse.ArgumentTypeError(f"{text!r} is not a number {limits}")
        return value

    return parse


def fraction(text):
    """An argparse type: a number from 0 to 1."""
    value = number()(text)
    if value > 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return value


def one_of(choices):
    """An argparse type: one of these words, where argparse's own `choices` does not reach: in `several`, in a URL."""

    def parse(text):
        if text not in choices:
            raise argparse.ArgumentTypeError(f"{text!r} is not one of {', '.join(choices)}")
        return text

    return parse


def place(text):
    """An argparse type: the name of a file or a folder; ~ is the home folder, also where the shell leaves it alone."""
    if not text:
        raise argparse.ArgumentTypeError("an empty name; leave the flag out, or name a file or a folder")
    return os.path.expanduser(text)


def several(one):
    """An argparse type: values of the argparse type `one`, with commas between."""

    def parse(text):
        return tuple(one(word) for word in text.split(","))

    return parse


def check_level(flag, value, T, low=1):
    """Raise UserError unless `value`, which came with `flag`, is from `low` to the checkpoint's T; else return it."""
    if not low <= value <= T:
        raise UserError(f"{flag} {value}: this checkpoint has T = {T}, so {low} to {T}")
    return value


def check_upscale(k, size):
    """Refuse, before the work, to enlarge a figure of `size` bytes k times each way if it would fill the memory."""
    most = max(1, math.isqrt(ENLARGED // size))
    if k > most:
        raise UserError(
            f"--upscale {k}: the largest figure would have {k * k * size / 2**30:.1f} GiB; "
            f"use --upscale {most} at most, or draw less"
        )


def writable(flag, path, endings=()):
    """Raise UserError if the file that `flag` names cannot be written, before any work is done.

    endings: those that its name may have; if none are given, any.
    """
    path = Path(path)
    if endings and path.suffix not in endings:
        raise UserError(f"{flag} {path}: expected a name that ends in {' or '.join(endings)}")
    new = not path.exists()
    try:
        open(path, "ab").close()
        if new:
            path.unlink()
    except OSError as error:
        raise UserError(f"cannot write {flag} {path}: {error.strerror}; choose another file") from None


def add_checkpoint(parser, draws=True):
    """The arguments of every program that uses a checkpoint.  draws: whether it draws noise by its --seed."""
    parser.add_argument(
        "--ckpt", type=place, metavar="last|best|PATH", help="checkpoint (default: the newest run's best.pth)"
    )
    parser.add_argument("--preset", metavar="NAME", help="take last or best of this preset's run in ckpt/")
    parser.add_argument(
        "--weights", choices=("ema", "raw"), default="ema", help="ema: the averaged ones (default); raw: as trained"
    )
    if draws:
        parser.add_argument("--seed", type=whole(0), default=0, help="of the noise (default 0)")
    else:
        parser.set_defaults(seed=0)
    add_device(parser)


def add_device(parser):
    """The argument of every program: where the network computes."""
    what = "auto (default: cuda if there is one, else cpu), cpu, cuda or cuda:N"
    parser.add_argument("--device", default="auto", metavar="NAME", help=what)


def add_running(parser):
    """The arguments of every program that may draw many pictures: how the network computes."""
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of the network (default fp32)")
    parser.add_argument("--compile", action="store_true", help="torch.compile it: minutes, for 10,000 pictures or more")


def find_checkpoint(ckpt, preset):
    """The path that --ckpt and --preset name; without either the newest run, or else the checkpoint shipped with us.

    Raises UserError for an unknown preset, one beside a path, and a run that is not there.
    """
    if preset is not None and preset not in PRESETS:
        raise UserError(f"--preset {preset}: unknown{did_you_mean(preset, PRESETS)}")
    if ckpt not in (None, "last", "best"):
        if preset is not None:
            raise UserError(f"--preset {preset}: --ckpt {ckpt} says which checkpoint; leave one of the two out")
        path = Path(ckpt)
        return path / "best.pth" if path.is_dir() and (path / "best.pth").exists() else path
    name = f"{ckpt or 'best'}.pth"
    runs = [Path("ckpt") / preset / name] if preset else list(Path("ckpt").glob(f"*/{name}"))
    runs = [r for r in runs if r.exists()]
    if runs:
        return max(runs, key=lambda r: r.stat().st_mtime)
    if preset or ckpt:
        where = f"ckpt/{preset}" if preset else "ckpt/"
        train = f"python main.py --preset {preset}" if preset else "python main.py"
        raise UserError(f"there is no {name} in {where} yet: run {train}, or leave --ckpt and --preset out")
    print(f"no run in ckpt/ yet: using the checkpoint shipped with this program, {os.path.relpath(SHIPPED)}")
    return SHIPPED


def run(main, argv=None):
    """Call main(argv); what goes wrong becomes one line and an exit code: 2 for a user's mistake, 130 for Ctrl-C."""
    argv = sys.argv[1:] if argv is None else argv
    machine.keep_memory()
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # its own default; unset, Triton warns on every GPU
    os.environ["MATPLOTLIBRC"] = os.devnull  # the user's own may ask for TeX, or for letters that cover our curves
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever started us: nobody wants to read it
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        elif hasattr(getattr(sys, name), "reconfigure"):
            # a file name may be no text at all; and a log should grow while the training does
            getattr(sys, name).reconfigure(errors="backslashreplace", line_buffering=True)
    warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
    try:
        return main([a for a in argv if a != "--debug"]) or 0
    except KeyboardInterrupt:
        print("\ninterrupted; nothing is half-written, and the same command starts again", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output went away, perhaps before the work was done
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is still buffered must not fail at exit
        return 128 + signal.SIGPIPE  # as any program then ends
    except Exception as error:
        expected = isinstance(error, (UserError, OSError)) or out_of_memory(error)
        if "--debug" in argv or not expected:
            raise
        if os.environ.get("RANK", "0") != "0":  # of several processes: what the first is refused, too, it says for all
            time.sleep(10)  # and ends, whereupon torchrun ends the others
        print(f"error: {_one_line(error)}", file=sys.stderr)
        return 2


def out_of_memory(error):
    """Whether this is what Python or PyTorch raises when memory runs out."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text


def _one_line(error):
    if out_of_memory(error):
        return (
            "out of memory; use a smaller batch (--train.batch_size in training, --batch-size otherwise), "
            "fewer pictures (-n, --data.count) or --model.grad_checkpoint true"
        )
    text = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)
    text = " ".join(text.split())
    return "".join(c if c.isprintable() else "?" for c in text)  # file names may hold terminal codes
