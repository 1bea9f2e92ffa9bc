"""Which settings cannot work?  They are refused before anything is built, with the flag and what would.

What one field may be is in two tables, what several must agree on in the rules.  The settings themselves are explained
in config.py.  Read next: main.py.
"""

import math
import shlex

from config import UserError, did_you_mean, field_of, field_types, size_multiple, to_text

MOST = 10**12
# The least and the most of each number in a field; more, by a typing error or from a hostile checkpoint, would fill the
# memory or never end.
RANGES = {
    **dict.fromkeys(("data.size", "sample.n"), (1, 2**16)),
    **dict.fromkeys(("model.channel_mults", "model.patch", "model.heads"), (1, 2**10)),
    **dict.fromkeys(("model.mid_blocks", "model.decoder_blocks"), (0, 2**8)),
    **dict.fromkeys(("train.batch_size", "train.accumulate", "diffusion.T"), (1, 2**20)),
    **dict.fromkeys(("train.eval_every", "train.max_skips"), (1, MOST)),
    **dict.fromkeys(("data.seed", "train.seed", "train.steps", "train.epochs", "train.warmup_steps"), (0, MOST)),
    **dict.fromkeys(("train.clip_norm", "sample.guidance"), (0, MOST)),
    "data.count": (1, 2**24), "model.channels": (4, 2**16), "model.num_classes": (0, 2**16),
    "model.num_res_blocks": (1, 2**8), "train.val_images": (4, 2**20),
}  # fmt: skip
CHOICES = {
    "diffusion.process": ("gaussian", "learned_variance", "edm"), "diffusion.schedule": ("linear", "cosine"),
    "diffusion.prediction": ("eps", "x0", "v"), "train.lr_schedule": ("constant", "cosine"),
    "train.ema_warmup": ("ratio", "power", "none"), "train.distance_features": ("random", "pixels", "inception"),
}  # fmt: skip


def check(config):
    """Raise UserError for the first setting that cannot work, naming the flag and what would.  Returns `config`."""
    d, m, f, t, s = config.data, config.model, config.diffusion, config.train, config.sample
    for rules in (one_by_one(config), network(d, m), noise(f), training(d, m, t), sampling(m, f, t, s)):
        for holds, name, wanted in rules:  # in this order: later rules rely on those before
            if not holds:
                raise UserError(f"--{name} {shlex.quote(to_text(field_of(config, name)))}: expected {wanted}")
    return config


# Each yields (whether it holds, the field to blame, what would do).


def one_by_one(config):
    """What each field may be, whatever the others are."""
    for name in field_types():
        value = field_of(config, name)
        if name in CHOICES:
            yield value in CHOICES[name], name, " or ".join(CHOICES[name]) + did_you_mean(value, CHOICES[name])
        numbers = [n for n in (value if isinstance(value, tuple) else (value,)) if isinstance(n, (int, float))]
        least, most = RANGES.get(name, (-MOST, MOST))
        yield all(map(math.isfinite, numbers)), name, "a finite number"  # nan and inf parse as floats, and help nobody
        yield all(n >= least for n in numbers), name, f"at least {least}" if least else "0 or more"
        yield all(n <= most for n in numbers), name, f"at most {most:,}"


def network(d, m):
    """The network, and the pictures that fit it."""
    yield d.channels in (1, 3, 4), "data.channels", "1 (grey), 3 (RGB) or 4 (RGBA)"
    yield len(d.size) == 2, "data.size", "height,width in pixels"
    yield 0 < d.val_fraction < 1, "data.val_fraction", "a share between 0 and 1"
    yield m.channels % 4 == 0, "model.channels", "a multiple of 4"
    yield m.channel_mults, "model.channel_mults", "one or more positive numbers"
    stages, most = len(m.channel_mults), m.num_res_blocks + 1
    fits = len(m.decoder_blocks) in (0, stages) and max(m.decoder_blocks, default=0) <= most
    yield fits, "model.decoder_blocks", f"{stages} numbers between 0 and {most}, or none at all"
    yield m.channels % m.heads == 0, "model.heads", f"a divisor of --model.channels {m.channels}"
    yield 0 <= m.dropout < 1, "model.dropout", "a share from 0 up to 1"
    unit = size_multiple(m)
    for side in d.size:
        near = " or ".join(str(v) for v in (side // unit * unit, side // unit * unit + unit) if v)
        yield side % unit == 0, "data.size", f"multiples of {unit}; nearest to {side}: {near}"


def noise(f):
    """The schedule and the prediction."""
    yield f.process == "gaussian" or f.T > 1, "diffusion.T", f"at least 2 with --diffusion.process {f.process}"
    yield 0 < f.beta_start < 1, "diffusion.beta_start", "a number between 0 and 1"
    yield f.beta_end < 1, "diffusion.beta_end", "less than 1"
    yield f.beta_start <= f.beta_end, "diffusion.beta_start", f"beta_start <= beta_end, which is {f.beta_end:g}"
    if f.schedule == "linear" and f.process != "edm":
        # ᾱ_T = Π (1-β_t); divided by a √ᾱ_T much smaller than this allows, float32 overflows
        rise = (f.beta_end - f.beta_start) / max(1, f.T - 1)
        left = sum(math.log1p(-f.beta_start - i * rise) for i in range(f.T)) / math.log(10)
        wanted = f"less, or a smaller --diffusion.T: ᾱ at its end would be 1e{left:.0f}"
        yield left > -60, "diffusion.beta_end", wanted
    yield f.min_snr_gamma is None or f.min_snr_gamma > 0, "diffusion.min_snr_gamma", "a positive number or none"
    if f.zero_terminal_snr:
        wanted = "false, or T > 1 and --diffusion.prediction v or x0: at T the noise alone says nothing of the picture"
        yield f.prediction != "eps" and f.T > 1, "diffusion.zero_terminal_snr", wanted
        wanted = "none with --diffusion.zero_terminal_snr true: at T, where that matters, the weight would be 0"
        yield f.min_snr_gamma is None, "diffusion.min_snr_gamma", wanted


def training(d, m, t):
    """The budget and the loop."""
    yield t.steps or t.epochs, "train.steps", "a budget: --train.steps N or --train.epochs N"
    yield t.distance_images != 1 and t.distance_images >= 0, "train.distance_images", "0 (never) or at least 2"
    textured = t.distance_images == 0 or t.distance_features != "random" or max(d.size) > 4
    wanted = "pixels: of pictures of 4 x 4 pixels or fewer the random ones see no texture"
    yield textured, "train.distance_features", wanted
    yield t.lr > 0, "train.lr", "a positive number"
    yield 0 <= t.ema_decay < 1, "train.ema_decay", "a number from 0 up to 1"
    yield 0 <= t.label_dropout <= 1, "train.label_dropout", "a share between 0 and 1"
    wanted = "less than 1, or no class would ever be learned; for a network without classes: --model.num_classes 0"
    yield t.label_dropout < 1 or not m.num_classes, "train.label_dropout", wanted


def sampling(m, f, t, s):
    """The pictures that are drawn on the way."""
    yield 1 <= s.steps <= f.T, "sample.steps", f"1 to --diffusion.T {f.T}"
    yield 0 <= s.eta <= 1, "sample.eta", "a number from 0 to 1"
    yield s.guidance == 1 or m.num_classes, "sample.guidance", "1, as the model has no classes"
    wanted = f"more than 0: --sample.guidance {s.guidance:g} needs a network that knows pictures without a label, too"
    yield s.guidance == 1 or t.label_dropout > 0, "train.label_dropout", wanted
