"""Which settings cannot work?  They are refused before anything is built, with the flag and what would.

The settings themselves are explained in config.py.  Read next: main.py.
"""

import math
import shlex

from config import UserError, did_you_mean, field_of, field_types, size_multiple, to_text

LARGEST = {  # beyond these a typing error, or a hostile checkpoint, would fill the memory or never end
    **dict.fromkeys(("data.size", "model.channels", "model.num_classes", "sample.n"), 2**16),
    **dict.fromkeys(("model.channel_mults", "model.patch", "model.heads"), 2**10),
    **dict.fromkeys(("model.num_res_blocks", "model.mid_blocks", "model.decoder_blocks"), 2**8),
    **dict.fromkeys(("train.batch_size", "train.accumulate", "train.val_images", "diffusion.T"), 2**20),
    "data.count": 2**24,
}


def check(config):
    """Raise UserError for the first setting that cannot work, naming the flag and what would.  Returns `config`."""
    d, m, f, t, s = config.data, config.model, config.diffusion, config.train, config.sample

    def need(ok, name, wanted):
        if not ok:
            raise UserError(f"--{name} {shlex.quote(to_text(field_of(config, name)))}: expected {wanted}")

    def one_of(name, *choices):
        value = field_of(config, name)
        need(value in choices, name, " or ".join(choices) + did_you_mean(value, choices))

    # all fields
    for name in field_types():  # nan and inf parse as floats and help nobody
        value = field_of(config, name)
        need(not isinstance(value, float) or math.isfinite(value), name, "a finite number")
        numbers = value if isinstance(value, tuple) else (value,)
        most = LARGEST.get(name, 10**12)
        need(all(isinstance(n, (str, type(None))) or n <= most for n in numbers), name, f"at most {most:,}")
    one_of("diffusion.process", "gaussian", "learned_variance", "edm")
    one_of("diffusion.schedule", "linear", "cosine")
    one_of("diffusion.prediction", "eps", "x0", "v")
    one_of("train.lr_schedule", "constant", "cosine")
    one_of("train.ema_warmup", "ratio", "power", "none")

    # data
    need(d.channels in (1, 3, 4), "data.channels", "1 (grey), 3 (RGB) or 4 (RGBA)")
    need(len(d.size) == 2 and min(d.size) >= 1, "data.size", "height,width in pixels")
    need(d.count >= 1, "data.count", "at least 1")
    need(0 < d.val_fraction < 1, "data.val_fraction", "a share between 0 and 1")
    need(d.seed >= 0, "data.seed", "0 or more")

    # network
    need(m.channels >= 4 and m.channels % 4 == 0, "model.channels", "a multiple of 4")
    need(len(m.channel_mults) >= 1 and min(m.channel_mults) >= 1, "model.channel_mults", "one or more positive numbers")
    need(m.num_res_blocks >= 1, "model.num_res_blocks", "at least 1")
    need(m.mid_blocks >= 0, "model.mid_blocks", "0 or more")
    blocks_fit = all(0 <= b <= m.num_res_blocks + 1 for b in m.decoder_blocks)
    need(
        not m.decoder_blocks or (len(m.decoder_blocks) == len(m.channel_mults) and blocks_fit),
        "model.decoder_blocks",
        f"{len(m.channel_mults)} numbers between 0 and {m.num_res_blocks + 1}, or none at all",
    )
    need(m.heads >= 1 and m.channels % m.heads == 0, "model.heads", f"a divisor of --model.channels {m.channels}")
    need(0 <= m.dropout < 1, "model.dropout", "a share from 0 up to 1")
    need(m.patch >= 1, "model.patch", "at least 1")
    need(m.num_classes >= 0, "model.num_classes", "0 or more")

    # diffusion
    need(f.T >= 1, "diffusion.T", "at least 1")
    need(f.process == "gaussian" or f.T > 1, "diffusion.T", f"at least 2 with --diffusion.process {f.process}")
    need(0 < f.beta_start < 1, "diffusion.beta_start", "a number between 0 and 1")
    need(f.beta_end < 1, "diffusion.beta_end", "less than 1")
    need(f.beta_start <= f.beta_end, "diffusion.beta_start", f"beta_start <= beta_end, which is {f.beta_end:g}")
    if f.schedule == "linear" and f.process != "edm":
        # ᾱ_T = Π (1-β_t); divided by a √ᾱ_T much smaller than this allows, float32 overflows
        rise = (f.beta_end - f.beta_start) / max(1, f.T - 1)
        left = sum(math.log1p(-f.beta_start - i * rise) for i in range(f.T)) / math.log(10)
        need(left > -60, "diffusion.beta_end", f"less, or a smaller --diffusion.T: ᾱ at its end would be 1e{left:.0f}")
    need(
        not f.zero_terminal_snr or (f.prediction != "eps" and f.T > 1),
        "diffusion.zero_terminal_snr",
        "false, or T > 1 and --diffusion.prediction v or x0: at T the noise alone says nothing of the picture",
    )
    need(
        not f.zero_terminal_snr or f.min_snr_gamma is None,
        "diffusion.min_snr_gamma",
        "none, with --diffusion.zero_terminal_snr true: it would weigh T with 0, the level for which that is made",
    )
    need(f.min_snr_gamma is None or f.min_snr_gamma > 0, "diffusion.min_snr_gamma", "a positive number or none")

    # training
    need(t.steps >= 0 and t.epochs >= 0, "train.steps" if t.steps < 0 else "train.epochs", "0 or more")
    need(t.steps or t.epochs, "train.steps", "a budget: --train.steps N or --train.epochs N")
    for name in ("batch_size", "accumulate", "eval_every", "max_skips"):
        need(getattr(t, name) >= 1, f"train.{name}", "at least 1")
    need(t.val_images >= 4, "train.val_images", "at least 4")
    need(t.distance_images == 0 or t.distance_images >= 2, "train.distance_images", "0 (never) or at least 2")
    one_of("train.distance_features", "random", "pixels", "inception")
    need(
        t.distance_images == 0 or t.distance_features != "random" or max(d.size) > 4,
        "train.distance_features",
        "pixels: of pictures of 4 x 4 pixels or fewer the random ones see no texture",
    )
    need(t.lr > 0, "train.lr", "a positive number")
    need(t.warmup_steps >= 0, "train.warmup_steps", "0 or more")
    need(t.clip_norm >= 0, "train.clip_norm", "0 (off) or more")
    need(0 <= t.ema_decay < 1, "train.ema_decay", "a number from 0 up to 1")
    need(0 <= t.label_dropout <= 1, "train.label_dropout", "a share between 0 and 1")
    need(
        t.label_dropout < 1 or not m.num_classes,
        "train.label_dropout",
        "less than 1, or no class would ever be learned; for a network without classes: --model.num_classes 0",
    )
    need(t.seed >= 0, "train.seed", "0 or more")

    # sampling
    need(1 <= s.steps <= f.T, "sample.steps", f"1 to --diffusion.T {f.T}")
    need(0 <= s.eta <= 1, "sample.eta", "a number from 0 to 1")
    need(s.guidance >= 0, "sample.guidance", "0 or more")
    need(s.guidance == 1 or m.num_classes, "sample.guidance", "1, as the model has no classes")
    need(
        s.guidance == 1 or t.label_dropout > 0,
        "train.label_dropout",
        f"more than 0, as --sample.guidance {s.guidance:g} needs a network that knows both with a label and without",
    )
    need(s.n >= 1, "sample.n", "at least 1")

    # the data and the network together
    unit = size_multiple(m)
    for side in d.size:
        if side % unit:
            low = side // unit * unit
            near = " or ".join(str(v) for v in (low, low + unit) if v)
            shape = "x".join(str(v) for v in d.size)
            raise UserError(f"--data.size {shape}: the network needs multiples of {unit}; nearest to {side}: {near}")
    return config
