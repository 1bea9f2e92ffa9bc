"""Every setting of a run in one place: what is trained, on what, how long.

A `Config` is frozen, made of five plain sections, and travels inside each checkpoint; so a checkpoint alone is
enough to sample.  Any field can be given on the command line by its dotted name: `--train.lr 2e-4`.
Presets are at the end of the file.  Imports nothing of ours.  Read next: main.py.
"""

import dataclasses
import difflib
import math
import types
import typing
from dataclasses import dataclass, field, replace


class UserError(Exception):
    """A mistake the user can mend: shown as one line with exit code 2, never as a traceback."""


@dataclass(frozen=True)
class Data:
    source: str = "textiles"  # textiles | cifar10 | cifar10-cars | hf:NAME | a folder or zip of images
    size: tuple[int, int] = (32, 32)  # height, width in pixels
    channels: int = 3  # 1 grey, 3 RGB, 4 RGBA
    count: int = 6000  # how many textiles are drawn; other sources are used whole
    val_fraction: float = 0.05  # share of the images held out for validation
    flip: bool = True  # mirror left-right at random; off where it is wrong (digits, text)
    seed: int = 0  # of the drawing and of the train / validation split


@dataclass(frozen=True)
class Model:
    channels: int = 128  # channels at the first stage
    channel_mults: tuple[int, ...] = (1, 2, 2, 2)  # times `channels`, one entry a stage; each stage halves H and W
    num_res_blocks: int = 2  # ResBlocks in each stage of the encoder
    mid_blocks: int = 2  # ResBlocks in the middle, the first with attention after it
    decoder_blocks: tuple[int, ...] = ()  # ResBlocks in each stage of the decoder; () = num_res_blocks + 1
    attention_resolutions: tuple[int, ...] = (16,)  # softmax attention where the feature map's short side is this
    linear_attention_resolutions: tuple[int, ...] = ()  # linear attention there instead
    heads: int = 1  # attention heads
    dropout: float = 0.1
    scale_shift: bool = False  # the embedding scales and shifts after the norm, and does not only shift before it
    patch: int = 1  # the network works on patch x patch blocks of pixels: H / patch by W / patch
    num_classes: int = 0  # 0 = no labels
    grad_checkpoint: bool = False  # recompute activations in the backward pass: less memory, more time


@dataclass(frozen=True)
class Diffusion:
    # gaussian | learned_variance | edm.  The last brings its own schedule, prediction and weights: those of a preset
    # give way to them, and those on the command line are refused.
    process: str = "gaussian"
    schedule: str = "linear"  # linear | cosine
    T: int = 1000
    beta_start: float = 1e-4  # linear only
    beta_end: float = 0.02  # linear only
    prediction: str = "eps"  # eps | x0 | v
    zero_terminal_snr: bool = False  # rescale so that nothing of the picture is left at T; not with eps
    min_snr_gamma: float | None = None  # None = every timestep has weight 1


@dataclass(frozen=True)
class Train:
    steps: int = 0  # optimiser steps; 0 = use epochs
    epochs: int = 0
    batch_size: int = 128  # images in one forward pass, over all processes together
    accumulate: int = 1  # forward passes for each optimiser step
    lr: float = 2e-4
    lr_schedule: str = "constant"  # constant | cosine (falls, to be 0 after the last step), after the warm-up
    warmup_steps: int = 0  # the learning rate rises linearly over these
    clip_norm: float = 1.0  # largest gradient norm; 0 = no clipping
    ema_decay: float = 0.9999
    ema_warmup: str = "ratio"  # ratio: (1+n)/(10+n) | power: 1-(1+n)^(-3/4) | none; never above ema_decay
    label_dropout: float = 0.1  # share of labels hidden in training, so that guidance is possible
    eval_every: int = 1000  # steps between evaluations: validation, sample grid, best.pth, last.pth
    val_images: int = 512  # held-out images in one validation, each with its own timestep; repeated if there are fewer
    distance_images: int = 0  # pictures compared with the data at each evaluation (slow; see evaluation/); 0 = none
    # what is compared: random | pixels | inception (FID, KID; drawn as precise as trained)
    distance_features: str = "random"
    max_skips: int = 20  # stop after so many steps in a row whose gradient is not finite (every 10th step looks back)
    seed: int = 0


@dataclass(frozen=True)
class Sample:
    steps: int = 50  # noise levels of a walk; but `generate.py ddpm` takes all T, and `ode` chooses its own
    eta: float = 0.0
    guidance: float = 1.0  # 1 = the conditional prediction, 0 = the unconditional one
    n: int = 36  # pictures in the grid of each evaluation


@dataclass(frozen=True)
class Config:
    name: str = "textiles"
    data: Data = field(default_factory=Data)
    model: Model = field(default_factory=Model)
    diffusion: Diffusion = field(default_factory=Diffusion)
    train: Train = field(default_factory=Train)
    sample: Sample = field(default_factory=Sample)


SECTIONS = {"data": Data, "model": Model, "diffusion": Diffusion, "train": Train, "sample": Sample}

# What edm brings with it, and the defaults that then stand in the config in place of a preset's.
BRINGS = {f"diffusion.{f.name}": f.default for f in dataclasses.fields(Diffusion) if f.name not in ("process", "T")}


# ---------------------------------------------------------------- text and dictionaries <-> Config


def did_you_mean(word, known):
    """` (did you mean X?)`, or nothing when no known word is near."""
    found = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" (did you mean {found[0]}?)" if found else ""


def field_types():
    """{"train.lr": float, ...}: every field of every section by its dotted name."""
    return {f"{s}.{k}": v for s, cls in SECTIONS.items() for k, v in typing.get_type_hints(cls).items()}


def field_of(config, name):
    """The value of the field with this dotted name."""
    section, key = name.split(".")
    return getattr(getattr(config, section), key)


def parse_value(name, text):
    """The command line's `text` as the type of field `name`.  Raises UserError if it is not one."""
    kind = field_types()[name]
    try:
        if typing.get_origin(kind) is tuple:
            fixed = ... not in typing.get_args(kind)  # a height and a width: 64x48 will do, too
            values = (text.replace("x", ",") if fixed else text).split(",") if text.strip() else ()
            values = tuple(int(v) for v in values)
            if fixed and len(values) == 1:
                values *= len(typing.get_args(kind))  # --data.size 64 is 64x64
            if fixed and len(values) != len(typing.get_args(kind)):
                raise ValueError
            return values
        if kind is bool:
            return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[text.lower()]
        if isinstance(kind, types.UnionType):
            return None if text.lower() == "none" else float(text)
        return kind(text)
    except (ValueError, KeyError):
        wanted = {bool: "true or false", int: "a whole number", float: "a number"}.get(kind, "")
        wanted = wanted or ("a number or none" if isinstance(kind, types.UnionType) else "whole numbers like 32,32")
        raise UserError(f"--{name} {text}: expected {wanted}") from None


def override(config, values):
    """`config` with {"train.lr": 2e-4, ...} replaced.  A budget in epochs replaces one in steps, edm what it BRINGS."""
    if "train.epochs" in values and "train.steps" not in values:
        values = {**values, "train.steps": 0}
    if values.get("diffusion.process", config.diffusion.process) == "edm":
        for name in values:
            if name in BRINGS:
                raise UserError(f"--{name}: --diffusion.process edm brings its own; leave one of the two out")
        values = {**values, **BRINGS}
    if values.get("diffusion.schedule", config.diffusion.schedule) == "cosine":
        for name in ("diffusion.beta_start", "diffusion.beta_end"):
            if name in values:
                raise UserError(f"--{name}: the cosine schedule has none; leave it out, or take the linear one")
    for name, value in values.items():
        section, key = name.split(".")
        config = replace(config, **{section: replace(getattr(config, section), **{key: value})})
    return config


def to_dict(config):
    """Nested plain dictionaries and lists: what config.json and checkpoints hold."""
    return dataclasses.asdict(config)


def from_dict(saved):
    """The Config that `to_dict` wrote.  Raises UserError for a field that this version does not know."""
    if not isinstance(saved, dict):
        raise UserError("its config is not a table of settings")
    types_of, parts = field_types(), {}
    for section, cls in SECTIONS.items():
        values = saved.get(section, {})
        if not isinstance(values, dict):
            raise UserError(f"its config has no section {section}")
        for key, value in values.items():
            name = f"{section}.{key}"
            if name not in types_of:
                raise UserError(f"its config has an unknown field {name}{did_you_mean(name, types_of)}")
            if not _is_a(value, types_of[name]):
                raise UserError(f"its config field {name} has the value {value!r}, which is of the wrong type")
        parts[section] = cls(**{k: tuple(v) if isinstance(v, (list, tuple)) else v for k, v in values.items()})
    for key in saved:
        if key not in SECTIONS and key != "name":
            raise UserError(f"its config has an unknown section {key}{did_you_mean(str(key), SECTIONS)}")
    return Config(name=str(saved.get("name", "")), **parts)


def _is_a(value, kind):
    if typing.get_origin(kind) is tuple:
        return isinstance(value, (list, tuple)) and all(type(v) is int for v in value)
    if isinstance(kind, types.UnionType):
        return value is None or type(value) in (int, float)
    return type(value) in ((int, float) if kind is float else (kind,))


# ---------------------------------------------------------------- what cannot work is refused before it is built


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
            raise UserError(f"--{name} {field_of(config, name)}: expected {wanted}")

    def one_of(name, *choices):
        value = field_of(config, name)
        need(value in choices, name, " or ".join(choices) + did_you_mean(value, choices))

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
    need(d.channels in (1, 3, 4), "data.channels", "1 (grey), 3 (RGB) or 4 (RGBA)")
    need(len(d.size) == 2 and min(d.size) >= 1, "data.size", "height,width in pixels")
    need(d.count >= 1, "data.count", "at least 1")
    need(0 < d.val_fraction < 1, "data.val_fraction", "a share between 0 and 1")
    need(d.seed >= 0, "data.seed", "0 or more")
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
    need(f.T >= 1, "diffusion.T", "at least 1")
    need(f.process == "gaussian" or f.T > 1, "diffusion.T", f"at least 2 with --diffusion.process {f.process}")
    need(0 < f.beta_start < 1, "diffusion.beta_start", "a number between 0 and 1")
    need(f.beta_end < 1, "diffusion.beta_end", "less than 1")
    need(f.beta_start <= f.beta_end, "diffusion.beta_start", f"beta_start <= beta_end, which is {f.beta_end:g}")
    if (
        f.schedule == "linear" and f.process != "edm"
    ):  # ᾱ_T = Π (1-β_t); divided by a √ᾱ_T much smaller than this allows, float32 overflows
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
    unit = size_multiple(m)
    for side in d.size:
        if side % unit:
            low = side // unit * unit
            near = " or ".join(str(v) for v in (low, low + unit) if v)
            shape = "x".join(str(v) for v in d.size)
            raise UserError(f"--data.size {shape}: the network needs multiples of {unit}; nearest to {side}: {near}")
    return config


def attended(config):
    """The resolutions, of those that the network works at, where it has attention outside the middle."""
    m = config.model
    levels = [min(config.data.size) // m.patch >> level for level in range(len(m.channel_mults))]
    return [r for r in levels if r in (*m.attention_resolutions, *m.linear_attention_resolutions)]


def size_multiple(model):
    """H and W must be multiples of this: the stem divides by `patch`, every level but the last by 2."""
    return model.patch * 2 ** (len(model.channel_mults) - 1)


def out_channels(config):
    """Channels of the network's output: the picture's, and as many again where it also says the variance."""
    return config.data.channels * (2 if config.diffusion.process == "learned_variance" else 1)


# ---------------------------------------------------------------- presets

PRESETS = {
    # The default: no download, no GPU, recognisable pictures in ten minutes or less on two CPU cores.
    "textiles": Config(
        name="textiles",
        data=Data(flip=False),
        model=Model(
            48,
            (1, 2, 2),
            num_res_blocks=1,
            attention_resolutions=(8,),
            heads=4,
            dropout=0.0,
            scale_shift=True,
            patch=2,
            num_classes=12,
        ),
        diffusion=Diffusion(schedule="cosine", prediction="v", min_snr_gamma=5.0),
        train=Train(
            steps=2000,
            batch_size=32,
            lr=1e-3,
            warmup_steps=50,
            ema_decay=0.995,
            eval_every=500,
            val_images=256,
        ),
        sample=Sample(steps=50, eta=1.0, guidance=1.5),
    ),
    # 4,250 photographs of cars.
    "cifar10-cars": Config(
        name="cifar10-cars",
        data=Data(source="cifar10-cars", val_fraction=0.15),
        model=Model(
            64,
            (1, 2, 4, 8, 16),
            num_res_blocks=1,
            mid_blocks=0,
            decoder_blocks=(2, 2, 2, 2, 0),
            attention_resolutions=(),
            linear_attention_resolutions=(32, 16, 8, 4),
            heads=8,
            dropout=0.0,
        ),
        train=Train(epochs=2000, batch_size=64, lr=1e-4, ema_decay=0.9999, eval_every=2000, val_images=750),
    ),
    # The same photographs for those who have no GPU: a small network like the default's, wider; about an hour.
    "cifar10-cars-small": Config(
        name="cifar10-cars-small",
        data=Data(source="cifar10-cars", val_fraction=0.15),
        model=Model(64, (1, 2, 2), num_res_blocks=1, attention_resolutions=(8,), heads=4, dropout=0.0, patch=2),
        diffusion=Diffusion(schedule="cosine", prediction="v", min_snr_gamma=5.0),
        train=Train(
            steps=18_000,
            batch_size=32,
            lr=5e-4,
            lr_schedule="cosine",
            warmup_steps=200,
            ema_decay=0.999,
            eval_every=2000,
            val_images=256,
        ),
        sample=Sample(steps=50, eta=1.0),
    ),
    # The network and the recipe of the DDPM paper.
    "cifar10": Config(
        name="cifar10",
        data=Data(source="cifar10", val_fraction=0.02),
        model=Model(),
        train=Train(steps=800_000, warmup_steps=5000, eval_every=5000),
    ),
    "stanford-cars": Config(
        name="stanford-cars",
        data=Data(source="data/stanford-cars", size=(64, 64), val_fraction=0.05),
        model=Model(64, (1, 2, 4, 8), num_res_blocks=2, mid_blocks=1, heads=4, dropout=0.0),
        # Deviation: the original takes the paper's betas, made for T = 1000, at T = 512; they leave part of the signal
        # at T, though sampling starts from none.  Twice as large, they reach nearly the same.
        diffusion=Diffusion(T=512, beta_start=2e-4, beta_end=0.04),
        train=Train(epochs=300, batch_size=64, lr=1e-4, lr_schedule="cosine", warmup_steps=2400, eval_every=2000),
    ),
    "fabrics": Config(
        name="fabrics",
        data=Data(source="data/fabrics", size=(64, 64)),
        model=Model(64, (1, 2, 4, 8), num_res_blocks=1, mid_blocks=1, heads=4, dropout=0.0),
        train=Train(steps=500_000, batch_size=32, accumulate=2, lr=8e-5, ema_decay=0.995, eval_every=25_000),
        sample=Sample(steps=250),
    ),
    "pokemon": Config(
        name="pokemon",
        data=Data(source="data/pokemon", size=(64, 64)),
        model=Model(
            128, (1, 2, 4, 8), num_res_blocks=2, mid_blocks=1, decoder_blocks=(2, 2, 2, 0), heads=8, dropout=0.0
        ),
        train=Train(
            epochs=400,
            batch_size=16,
            lr=1e-4,
            lr_schedule="cosine",
            warmup_steps=500,
            ema_warmup="power",
            eval_every=1000,
        ),
    ),
    # What the tests use: seconds.
    "smoke": Config(
        name="smoke",
        data=Data(size=(16, 16), count=8, val_fraction=0.25),
        model=Model(
            8, (1, 2), num_res_blocks=1, mid_blocks=1, attention_resolutions=(8,), heads=2, dropout=0.0, num_classes=12
        ),
        diffusion=Diffusion(T=50, beta_end=0.3),
        train=Train(steps=8, batch_size=4, lr=1e-3, eval_every=4, val_images=8),
        sample=Sample(steps=5, n=4),
    ),
}

# For --list-presets: what it is; its data, where from, how large, under which terms; what it takes (docs/presets.md).
ABOUT = {
    "textiles": "Woven patterns in twelve motifs. Data: drawn by the program, no download, no licence needed. "
    "Takes: ten minutes or less on two CPU cores.",
    "cifar10-cars": "The automobiles of CIFAR-10, linear attention. Data: 4,250 + 750 pictures, torchvision downloads "
    "170 MB from the University of Toronto on first use; published without a licence, cite Krizhevsky 2009. "
    "Estimate: under an hour on a data-centre GPU.",
    "cifar10-cars-small": "The same pictures without a GPU: a small network like the default's, wider. Data: as for "
    "cifar10-cars. Takes: about an hour on two CPU cores.",
    "cifar10": "CIFAR-10 with the network and recipe of the DDPM paper. Data: 50,000 pictures, as for cifar10-cars. "
    "Estimate: half a day on a data-centre GPU.",
    "stanford-cars": "Photographs of cars at 64x64. Data: 16,185 pictures, 1.9 GB; torchvision can no longer download "
    "them: fetch Stanford Cars (Krause et al. 2013) from a mirror into data/stanford-cars, or give --data PATH; for "
    "research only. Estimate: about an hour on a data-centre GPU.",
    "fabrics": "African fabrics at 64x64. Data: 1,059 pictures; put them into data/fabrics, or give --data PATH; see "
    "the terms of where you got them. Estimate: about five hours on a data-centre GPU.",
    "pokemon": "Pokemon at 64x64. Data: put pictures into data/pokemon, or give --data PATH or hf:NAME; they are "
    "their publisher's property, so keep the results to yourself. Estimate: minutes for each thousand pictures on a "
    "data-centre GPU.",
    "smoke": "A run of seconds, for tests: eight textiles and a tiny network.",
}
