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
    for rules in (one_by_one, network, noise, training, sampling):
        for holds, name, wanted in rules(config):  # in this order: later rules rely on those before
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


def network(config):
    """The network, and the pictures that fit it."""
    data, model = config.data, config.model
    yield data.channels in (1, 3, 4), "data.channels", "1 (grey), 3 (RGB) or 4 (RGBA)"
    yield len(data.size) == 2, "data.size", "height,width in pixels"
    yield 0 < data.val_fraction < 1, "data.val_fraction", "a share between 0 and 1"
    yield model.channels % 4 == 0, "model.channels", "a multiple of 4"
    yield model.channel_mults, "model.channel_mults", "one or more positive numbers"
    stages, most = len(model.channel_mults), model.num_res_blocks + 1
    fits = len(model.decoder_blocks) in (0, stages) and max(model.decoder_blocks, default=0) <= most
    yield fits, "model.decoder_blocks", f"{stages} numbers between 0 and {most}, or none at all"
    yield model.channels % model.heads == 0, "model.heads", f"a divisor of --model.channels {model.channels}"
    yield 0 <= model.dropout < 1, "model.dropout", "a share from 0 up to 1"
    unit = size_multiple(model)
    for side in data.size:
        near = " or ".join(str(v) for v in (side // unit * unit, side // unit * unit + unit) if v)
        yield side % unit == 0, "data.size", f"multiples of {unit}; nearest to {side}: {near}"


def noise(config):
    """The schedule and the prediction."""
    diffusion = config.diffusion
    process, first, last = diffusion.process, diffusion.beta_start, diffusion.beta_end
    yield process == "gaussian" or diffusion.T > 1, "diffusion.T", f"at least 2 with --diffusion.process {process}"
    yield first > 0, "diffusion.beta_start", "a positive number"
    yield last < 1, "diffusion.beta_end", "less than 1"
    yield first <= last, "diffusion.beta_start", f"beta_start <= beta_end, which is {last:g}"
    if diffusion.schedule == "linear" and process != "edm":
        # ᾱ_T = Π (1-β_t); divided by a √ᾱ_T much smaller than this allows, float32 overflows
        rise = (last - first) / max(1, diffusion.T - 1)
        left = sum(math.log1p(-first - i * rise) for i in range(diffusion.T)) / math.log(10)
        wanted = f"less, or a smaller --diffusion.T: ᾱ at its end would be 1e{left:.0f}"
        yield left > -60, "diffusion.beta_end", wanted
    gamma = diffusion.min_snr_gamma
    yield gamma is None or gamma > 0, "diffusion.min_snr_gamma", "a positive number or none"
    if diffusion.zero_terminal_snr:
        wanted = "false, or T > 1 and --diffusion.prediction v or x0: at T the noise alone says nothing of the picture"
        yield diffusion.prediction != "eps" and diffusion.T > 1, "diffusion.zero_terminal_snr", wanted
        wanted = "none with --diffusion.zero_terminal_snr true: at T, where that matters, the weight would be 0"
        yield gamma is None, "diffusion.min_snr_gamma", wanted


def training(config):
    """The budget and the loop."""
    train = config.train
    yield train.steps or train.epochs, "train.steps", "a budget: --train.steps N or --train.epochs N"
    yield train.distance_images != 1 and train.distance_images >= 0, "train.distance_images", "0 (never) or at least 2"
    textured = train.distance_images == 0 or train.distance_features != "random" or max(config.data.size) > 4
    wanted = "pixels: of pictures of 4 x 4 pixels or fewer the random ones see no texture"
    yield textured, "train.distance_features", wanted
    yield train.lr > 0, "train.lr", "a positive number"
    yield 0 <= train.ema_decay < 1, "train.ema_decay", "a number from 0 up to 1"
    yield 0 <= train.label_dropout <= 1, "train.label_dropout", "a share between 0 and 1"
    wanted = "less than 1, or no class would ever be learned; for a network without classes: --model.num_classes 0"
    yield train.label_dropout < 1 or not config.model.num_classes, "train.label_dropout", wanted


def sampling(config):
    """The pictures that are drawn on the way."""
    T, classes, sample = config.diffusion.T, config.model.num_classes, config.sample
    yield 1 <= sample.steps <= T, "sample.steps", f"1 to --diffusion.T {T}"
    yield 0 <= sample.eta <= 1, "sample.eta", "a number from 0 to 1"
    yield sample.guidance == 1 or classes, "sample.guidance", "1, as the model has no classes"
    guided = f"--sample.guidance {sample.guidance:g}"
    wanted = f"more than 0: {guided} needs a network that knows pictures without a label, too"
    yield sample.guidance == 1 or config.train.label_dropout > 0, "train.label_dropout", wanted
