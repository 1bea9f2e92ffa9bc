"""Edit pictures with a trained model:  python edit.py inpaint|img2img|invert [--image PIC] [--ckpt last|best|PATH]

Nothing is trained for it.  Without --image the pictures are real ones that the model has not seen.  Read next:
diffusion/inpaint.py, diffusion/invert.py.
"""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import cli
import machine
import outputs
import sampling
from config import UserError
from dataset import pictures, reference
from dataset.pixels import from_uint8, to_uint8
from diffusion.inpaint import inpaint
from diffusion.invert import invert
from diffusion.samplers import SAMPLERS
from diffusion.steps import image_noise, last, spaced
from files import put
from painter import Painter

MASKS = ("left", "right", "top", "bottom", "center", "border")
OPTIONS = {  # command -> {option of its own: how its flag is declared}
    "inpaint": {
        "mask": {
            "type": cli.place,
            "metavar": "PIC|" + "|".join(MASKS),
            "default": "center",
            "help": "what to draw anew: one of these, or where PIC is white",
        },
        "jump": {"type": cli.whole(1), "metavar": "J", "default": 5, "help": "levels in one stretch (default 5)"},
        "resamples": {"type": cli.whole(1), "metavar": "R", "default": 5, "help": "walks of each stretch (default 5)"},
    },
    "img2img": {
        "level": {"type": cli.whole(1), "metavar": "T", "help": "noise added first, 1..T (default half of T)"},
        "sampler": {"choices": SAMPLERS, "default": "ddim", "help": "from there (default ddim)"},
    },
    "invert": {
        "refine": {"type": cli.whole(0), "metavar": "K", "default": 0, "help": "repeats of each step (default 0)"},
    },
}


def parser():
    """The command line: one subcommand a kind of edit."""
    p = cli.Parser(prog="edit.py", description=__doc__.split("\n")[0])
    commands = p.add_subparsers(dest="command", metavar="|".join(COMMANDS), required=True)
    for name, command in COMMANDS.items():
        s = commands.add_parser(name, prog=f"edit.py {name}", help=command.__doc__.split("\n")[0])
        cli.add_checkpoint(s, draws=name != "invert")
        s.add_argument(
            "--image",
            type=cli.place,
            metavar="PIC",
            help="picture of any size (default: real ones, not seen in training)",
        )
        what = "pictures; --image is one" if name == "invert" else "pictures, or variants of --image"
        s.add_argument("-n", type=cli.whole(1, outputs.MOST), default=4, help=f"{what} (default 4)")
        s.add_argument("--steps", type=cli.whole(1), metavar="N", help="noise levels (default: the checkpoint's own)")
        s.add_argument("--label", metavar="NAME|NUMBER|none", default="none", help="class (default none)")
        s.add_argument(
            "--guidance", type=cli.number(), metavar="S", help="with a label (default: the checkpoint's own)"
        )
        s.add_argument("--out", type=cli.place, metavar="DIR", help=f"folder for the pictures (default out/{name})")
        for option, declared in OPTIONS[name].items():
            s.add_argument(f"--{option}", **declared)
    return p


def main(argv):
    """Run the program with these arguments; returns the exit code."""
    args = parser().parse_args(argv)
    path = cli.find_checkpoint(args.ckpt, args.preset)
    device = machine.use_device(args.device)
    painter = Painter.open(path, device, args.weights)
    config, diffusion = painter.config, painter.diffusion
    steps = cli.check_level("--steps", args.steps or config.sample.steps, painter.T)
    guidance = painter.usual_guidance(args.guidance, painter.find_label(args.label) is not None)
    originals = read(args, config.data, painter.trained_on)
    y = painter.labels(args.label, range(len(originals)))
    # Unclipped for inversion: a clip turns many guesses into one, and the way back could not tell them apart.
    denoise = diffusion.denoiser(painter.model, y, guidance=guidance, clip=args.command != "invert")
    x_0 = from_uint8(originals).to(device)
    noise_like = image_noise(args.seed, range(len(originals)))
    out = Path(args.out or Path("out") / args.command)
    outputs.prepare(out, {"command": args.command, "n": len(originals)}, names)
    print(f"{painter.origin}, {device}")
    sample = replace(config.sample, steps=steps)
    middle, after, facts = COMMANDS[args.command](args, diffusion, denoise, x_0, noise_like, sample)
    settings = {
        "checkpoint": str(path), "checkpoint_sha256": painter.digest, "weights": args.weights,
        "command": args.command, "image": args.image, "n": len(originals), "steps": steps, "seed": args.seed,
        "label": args.label, "guidance": guidance if y is not None else None, **facts,
    }  # fmt: skip
    middle, after = (to_uint8(painter.finished(x)).cpu() for x in (middle, after))
    write(out, originals, middle, after, pictures.readable_scale(config.data.size), settings)
    return 0


def read(args, data, trained_on):
    """The pictures to edit, uint8 (n, C, H, W): --image n times, or n that the model has not seen."""
    if args.image is not None:
        one = torch.from_numpy(reference.open_picture(args.image, data.size, data.channels).copy())
        n = 1 if args.command == "invert" else args.n  # without noise it would be n times the same
        return one.expand(n, -1, -1, -1).contiguous()
    try:
        return torch.from_numpy(np.ascontiguousarray(reference.unseen(data, args.n, trained_on).pixels))
    except UserError as error:
        raise UserError(f"{error}; or give a picture of your own by --image PIC") from None


def end_of(steps, total):
    """The end of a walk, with a progress bar on the way."""
    return last(tqdm(steps, total=total, unit="step", disable=None, dynamic_ncols=True))


# ---------------------------------------------------------------- the edits: (pictures on the way, results, facts)


def repaint(args, diffusion, denoise, x_0, noise_like, sample):
    """Draw a part of the picture anew, in keeping with the rest, which stays exactly as it is."""
    known = ~read_mask(args.mask, x_0.shape[-2:]).to(x_0.device)
    timesteps, options = spaced(diffusion.T, sample.steps), {"jump": args.jump, "resamples": args.resamples}
    drawn = inpaint(
        denoise, diffusion.schedule, noise_like(x_0), x_0, known, timesteps=timesteps, noise_like=noise_like, **options
    )
    grey = torch.where(known, x_0, torch.zeros_like(x_0))
    return grey, end_of(drawn, sample.steps * args.resamples), {"mask": args.mask, **options}


def img2img(args, diffusion, denoise, x_0, noise_like, sample):
    """Add noise up to a level and denoise from there: the rough shape stays, the detail is new (SDEdit)."""
    level = cli.check_level("--level", args.level or max(1, diffusion.T // 2), diffusion.T)
    usual = sampling.defaults(args.sampler, sample.eta)
    timesteps, options = sampling.plan(diffusion.schedule, min(sample.steps, level), usual, top=level)
    x = diffusion.q_sample(x_0, torch.full((len(x_0),), level, device=x_0.device), noise_like(x_0))
    stages = SAMPLERS[args.sampler](
        denoise, diffusion.schedule, x, timesteps=timesteps, noise_like=noise_like, **options
    )
    facts = {"level": level, "sampler": args.sampler, "levels": timesteps, **usual}
    return x, end_of(stages, len(timesteps)), facts


def return_trip(args, diffusion, denoise, x_0, noise_like, sample):
    """Find the noise that the picture comes from, and come back; prints the error against the number of steps."""
    error = {}
    fewer = {max(2, sample.steps // 4), max(2, sample.steps // 2)}  # a single long step cannot be inverted
    for n in sorted({n for n in fewer if n < sample.steps} | {sample.steps}):
        timesteps = spaced(diffusion.T, n)
        try:
            x_T = end_of(invert(denoise, diffusion.schedule, x_0, timesteps=timesteps, refine=args.refine), n)
        except ValueError as problem:
            raise UserError(f"--steps {n}: {problem}") from None
        x = end_of(SAMPLERS["ddim"](denoise, diffusion.schedule, x_T, timesteps=timesteps), n)
        error[n] = (x - x_0).square().mean().sqrt().item() * 127.5
        print(f"{n:5d} steps: comes back with an error of {error[n]:.2f} grey levels (root mean square)")
    return x_T, x, {"refine": args.refine, "error_grey_levels": error}


COMMANDS = {"inpaint": repaint, "img2img": img2img, "invert": return_trip}


def read_mask(text, size):
    """--mask as bool (H, W): True where the picture is to be drawn anew."""
    height, width = size
    mask = torch.zeros(size, dtype=torch.bool)
    top, left = height // 4, width // 4
    if text in ("center", "border"):
        mask[top : height - top, left : width - left] = True
        mask = mask if text == "center" else ~mask
    elif text in MASKS:
        half = {"left": (slice(None), slice(0, width // 2)), "right": (slice(None), slice(width // 2, None))}
        half |= {"top": (slice(0, height // 2),), "bottom": (slice(height // 2, None),)}
        mask[half[text]] = True
    else:
        if not Path(text).is_file():
            raise UserError(f"--mask {text}: no file, and not one of {', '.join(MASKS)}")
        mask = torch.from_numpy(reference.open_picture(text, tuple(size), 1)[0].copy()) > 127
    if mask.all() or not mask.any():
        raise UserError(
            f"--mask {text}: it must be white where to draw anew and black elsewhere; this one is all one colour"
        )
    return mask


def names(settings):
    """Names of the files that these settings go with; none if another program wrote them."""
    if settings["command"] not in COMMANDS:
        return set()
    return {"settings.json", "strip.png", *outputs.numbered(settings["n"])}


def write(out, before, middle, after, k, settings):
    """Write the settings, each result, and a strip of before | middle | after for all of them."""
    with outputs.replaced(out, settings, names) as new:
        for i, image in enumerate(pictures.upscale(after, k)):
            put(new / f"{i:05d}.png", pictures.save_png, image)
        strip = pictures.strip([pictures.upscale(z, k) for z in (before, middle, after)])
        put(new / "strip.png", pictures.save_png, strip)
    drawn = f"{len(after):,} picture{'s' if len(after) > 1 else ''}"
    print(f"{drawn}, and strip.png (before | on the way | after), in {out}")


if __name__ == "__main__":
    sys.exit(cli.run(main))
