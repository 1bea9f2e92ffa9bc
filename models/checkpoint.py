"""How is a night of training kept safe?

A checkpoint is data, never code: it is read with `weights_only=True`, so a hostile file cannot run anything.  It is
written whole or not at all (files.py), and holds the whole config, so it can be used without knowing how it was made.
"""

import hashlib
import pickle
import warnings
import zipfile
from pathlib import Path

import torch

from check import check
from config import UserError, from_dict, out_channels, to_dict
from files import put
from models.unet import UNet

VERSION = 1
KEYS = ("config", "ema", "step")  # what every checkpoint has; "model" too, unless it was made to be shared


def plain(state_dict):
    """`state_dict` without the prefixes that DistributedDataParallel and torch.compile put before each name."""
    return {str(k).replace("_orig_mod.", "").removeprefix("module."): v for k, v in state_dict.items()}


def save(path, config, *, model, ema, step, **more):
    """Write a checkpoint: the config, two state dicts, the step count, and whatever resuming needs (`more`).

    Raises UserError, and leaves what was there before, if a weight is not finite or the disk is full.
    """
    for name, tensor in (*model.items(), *ema.items()):
        if not torch.isfinite(tensor).all():
            raise UserError(
                f"{path} is not written: {name} is no longer finite; resume the last checkpoint with a lower --train.lr"
            )
    state = {"version": VERSION, "config": to_dict(config), "model": plain(model), "ema": plain(ema), "step": step}
    put(path, _write, {**state, **more})


def slim(path, out):
    """Write a checkpoint for sharing to `out`: the averaged weights of `path` alone, in half precision.

    Raises UserError if `path` is no checkpoint, if a weight is too large for that, or if `out` cannot be written.
    """
    config, state = load(path)
    ema = {k: v.half() for k, v in state["ema"].items()}
    if (wild := next((k for k, v in ema.items() if not torch.isfinite(v).all()), None)) is not None:
        raise UserError(f"{path}: {wild} is too large for half precision; share the file as it is")
    kept = {"version": VERSION, "config": to_dict(config), "ema": ema, "step": state["step"]}
    put(out, _write, {**kept, "classes": state["classes"]})


def _write(path, state):
    """Nothing but `state` decides the bytes: given a name, torch.save would write that into the file, too."""
    with open(path, "wb") as file:
        torch.save(state, file)


def digest(path):
    """SHA-256 of a file, in hexadecimal."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def load(path):
    """(config, state) of a checkpoint, on the CPU.  Raises UserError, naming the file, for anything that is not one."""
    path = Path(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about a foreign pickle; that it is refused says it all
            state = torch.load(path, map_location="cpu", weights_only=True)
        if zipfile.is_zipfile(path):  # not so in the format of old torch
            with zipfile.ZipFile(path) as file:
                if file.testzip():  # torch itself compares no checksums
                    raise ValueError("a checksum does not fit")
    except FileNotFoundError:
        raise UserError(f"{path}: no such checkpoint") from None
    except IsADirectoryError:
        raise UserError(f"{path}: a folder, not a checkpoint; give the .pth file in it") from None
    except PermissionError:
        raise UserError(f"{path}: not readable (permission denied)") from None
    except pickle.UnpicklingError:
        raise UserError(f"{path}: not a checkpoint of this program (or it would run code); not loaded") from None
    except Exception as error:  # torch's unpickler meets arbitrary bytes and may fail in any way
        empty = path.exists() and not path.stat().st_size
        reason = "empty file" if empty else f"damaged or cut short? {type(error).__name__}"
        raise UserError(f"{path}: not a readable checkpoint ({reason})") from error
    if not isinstance(state, dict) or "version" not in state:
        raise UserError(f"{path}: not a checkpoint of this program (it has no version)")
    if type(state["version"]) is not int or state["version"] != VERSION:
        version = " ".join(str(state["version"]).split())[:40]
        raise UserError(f"{path}: checkpoint version {version}, but this program reads {VERSION}; use a newer program")
    for key in KEYS:
        if key not in state:
            raise UserError(f"{path}: not a whole checkpoint (it has no {key!r})")
    try:
        config = check(from_dict(state["config"]))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    if not config.name.isprintable():
        raise UserError(f"{path}: the name of its preset is not plain text")
    if type(state["step"]) is not int or state["step"] < 0:
        raise UserError(f"{path}: not a whole checkpoint (its step is not a whole number)")
    classes = state.setdefault("classes", [])
    named = isinstance(classes, list) and all(isinstance(c, str) for c in classes)
    if not named or len(classes) not in (0, config.model.num_classes):
        raise UserError(f"{path}: its classes are not the {config.model.num_classes} names that its config promises")
    return config, state


def load_weights(model, state_dict, path):
    """Copy `state_dict` into `model`; UserError names the first tensor missing, left over or of another shape."""
    wanted, given = model.state_dict(), plain(state_dict) if isinstance(state_dict, dict) else {}
    for name, tensor in wanted.items():
        if name not in given:
            raise UserError(f"{path}: its weights do not fit its config: {name} is missing")
        of_numbers = isinstance(given[name], torch.Tensor) and given[name].is_floating_point()
        if not of_numbers or given[name].layout != torch.strided:  # a sparse one is data, too, but none of ours
            raise UserError(f"{path}: its weights do not fit its config: {name} is not a tensor of real numbers")
        shape = tuple(given[name].shape)
        if shape != tuple(tensor.shape):
            raise UserError(f"{path}: its weights do not fit its config: {name} is {shape}, not {tuple(tensor.shape)}")
    for name in given:
        if name not in wanted:
            raise UserError(f"{path}: its weights do not fit its config: {name} is left over")
        if not torch.isfinite(given[name]).all():
            raise UserError(f"{path}: {name} is not finite: the training had failed; use another checkpoint")
    model.load_state_dict(given)


def load_model(path, device="cpu", weights="ema"):
    """(model, config, state) of a checkpoint, ready to sample.  weights: "ema" | "raw".

    Raises UserError, naming the file, if it is no checkpoint, or has no such weights.
    """
    config, state = load(path)
    key = "ema" if weights == "ema" else "model"
    if key not in state:
        raise UserError(f"{path}: made for sharing, it holds the averaged weights only; use --weights ema")
    model = UNet(config.model, config.data.channels, config.data.size, out_channels(config))
    load_weights(model, state[key], path)
    return model.to(device, memory_format=torch.channels_last).eval().requires_grad_(False), config, state
