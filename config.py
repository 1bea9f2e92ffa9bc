"""Every setting of a run in one place: what is trained, on what, how long.

A `Config` is frozen, made of five plain sections, and travels inside each checkpoint; so a checkpoint alone is
enough to sample.  Any field can be given on the command line by its dotted name: `--train.lr 2e-4`.
First the sections, then the presets, then how text and dictionaries become a Config.  Imports nothing of ours.
Read next: check.py for what cannot work, main.py.
"""

import dataclasses
import difflib
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
    dropout: float = 0.1  # share of each ResBlock's features set to 0 in training
    scale_shift: bool = False  # true: the embedding scales and shifts, after the norm; false: it shifts, before it
    patch: int = 1  # the network works on patch x patch blocks of pixels: H / patch by W / patch
    num_classes: int = 0  # 0 = no labels
    grad_checkpoint: bool = False  # recompute activations in the backward pass: less memory, more time


@dataclass(frozen=True)
class Diffusion:
    # gaussian | learned_variance | edm.  The last brings its own schedule, prediction and weights: those of a preset
    # give way to them, and those on the command line are refused.
    process: str = "gaussian"
    schedule: str = "linear"  # linear | cosine
    T: int = 1000  # number of noise levels
    beta_start: float = 1e-4  # linear only
    beta_end: float = 0.02  # linear only
    prediction: str = "eps"  # what the network outputs: eps (the noise) | x0 (the picture) | v (a mixture of the two)
    zero_terminal_snr: bool = False  # rescale so that nothing of the picture is left at T; not with eps
    min_snr_gamma: float | None = None  # None = every timestep has weight 1


@dataclass(frozen=True)
class Train:
    steps: int = 0  # optimiser steps; 0 = use epochs
    epochs: int = 0  # passes over the training images, where steps is 0
    batch_size: int = 128  # images in one forward pass, over all processes together
    accumulate: int = 1  # forward passes for each optimiser step
    lr: float = 2e-4  # Adam's learning rate
    lr_schedule: str = "constant"  # constant | cosine (falls, to be 0 after the last step), after the warm-up
    warmup_steps: int = 0  # the learning rate rises linearly over these
    clip_norm: float = 1.0  # largest gradient norm; 0 = no clipping
    ema_decay: float = 0.9999  # how much of the averaged weights, which draw the samples, each step keeps
    ema_warmup: str = "ratio"  # ratio: (1+n)/(10+n) | power: 1-(1+n)^(-3/4) | none; never above ema_decay
    label_dropout: float = 0.1  # share of labels hidden in training, so that guidance is possible
    eval_every: int = 1000  # steps between evaluations: validation, sample grid, best.pth, last.pth
    val_images: int = 512  # held-out images in one validation, each with its own timestep; repeated if there are fewer
    distance_images: int = 0  # pictures compared with the data at each evaluation (slow; see evaluation/); 0 = none
    # what is compared: random | pixels | inception (FID, KID; samples are drawn at the precision of training)
    distance_features: str = "random"
    max_skips: int = 20  # stop after this many gradients in a row that are not finite (looked at every 10 steps)
    seed: int = 0  # of the weights, the order of the images and the noise

    @property
    def images_a_step(self):
        """Images in one optimiser step."""
        return self.batch_size * self.accumulate


@dataclass(frozen=True)
class Sample:
    steps: int = 50  # noise levels of a walk; but `generate.py ddpm` takes all T, and `ode` chooses its own
    eta: float = 0.0  # fresh noise in each step of ddim: 0 = none, 1 = as much as ddpm's
    guidance: float = 1.0  # 1 = the conditional prediction, 0 = the unconditional one
    n: int = 36  # pictures in the grid of each evaluation


@dataclass(frozen=True)
class Config:
    name: str = "textiles"  # the preset that it began with
    data: Data = field(default_factory=Data)
    model: Model = field(default_factory=Model)
    diffusion: Diffusion = field(default_factory=Diffusion)
    train: Train = field(default_factory=Train)
    sample: Sample = field(default_factory=Sample)


SECTIONS = {"data": Data, "model": Model, "diffusion": Diffusion, "train": Train, "sample": Sample}


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
            steps=2000, batch_size=32, lr=1e-3, warmup_steps=50, ema_decay=0.995, eval_every=500, val_images=256
        ),
        sample=Sample(eta=1.0, guidance=1.5),
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
        train=Train(epochs=2000, batch_size=64, lr=1e-4, eval_every=2000, val_images=750),
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
        sample=Sample(eta=1.0),
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
        data=Data(source="data/stanford-cars", size=(64, 64)),
        model=Model(64, (1, 2, 4, 8), mid_blocks=1, heads=4, dropout=0.0),
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
        model=Model(128, (1, 2, 4, 8), mid_blocks=1, decoder_blocks=(2, 2, 2, 0), heads=8, dropout=0.0),
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


# ---------------------------------------------------------------- text and dictionaries <-> Config

# What edm brings with it, and the defaults that then stand in the config in place of a preset's.
BRINGS = {f"diffusion.{f.name}": f.default for f in dataclasses.fields(Diffusion) if f.name not in ("process", "T")}


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


def to_text(value):
    """What the command line would say for this value: `parse_value` the other way round."""
    if isinstance(value, (tuple, list)):
        return ",".join(map(str, value))
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def override(config, values):
    """`config` with {"train.lr": 2e-4, ...} replaced.

    A budget in epochs replaces one in steps; edm resets what it BRINGS.  Raises UserError for a setting that another
    one leaves without a meaning.
    """
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
