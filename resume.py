"""How does an interrupted run go on as if nothing had happened?

All randomness of step k is a function of (seed, k), so besides the weights only this is missing: what the optimiser
and the average remember, the step, and the sums of the metrics.  `note` says what a checkpoint must hold for that,
`found` reads it, `refuse_changes` keeps to what a run keeps for life, and `go_on` puts it back, if the data is still
the same.  Read first: trainer.py.
"""

import warnings

import torch

from config import UserError, field_of, override
from models import checkpoint

FIXED = (  # what a run keeps for life: another network, other data, or another validation would make its curves lie
    "model.", "diffusion.", "data.size", "data.channels", "data.seed", "data.count", "data.val_fraction",
    "train.seed", "train.val_images",
)  # fmt: skip
FREE = ("model.grad_checkpoint",)  # but not these: they change the memory that is used, and no weight


def found(folder):
    """(config, state) of the run in this folder, for `go_on`.  Raises UserError if there is none that is whole."""
    last, best = folder / "last.pth", folder / "best.pth"
    before = stamp(folder)
    rest = f"; {best} can still draw" if best.exists() else ""
    if not last.exists():
        if rest:
            raise UserError(f"nothing to resume: {last} is gone{rest}; start a new run with --out DIR")
        raise UserError(f"nothing to resume: there is no {last}; start without --resume")
    try:
        config, state = checkpoint.load(last)
        return config, {**state, "stamp": before}
    except UserError as error:
        raise UserError(f"{error}: it cannot go on; start a new run with --out DIR{rest}") from None


def stamp(folder):
    """Another number whenever last.pth was written anew; None if it is not there."""
    last = folder / "last.pth"
    return last.stat().st_mtime_ns if last.exists() else None


def refuse_stale(folder, state):
    """Raise UserError if another process has gone on with the run since `found` read it."""
    if stamp(folder) != state["stamp"]:
        raise UserError(f"{folder}: another process has gone on with this run meanwhile; start again with --resume")


def refuse_changes(config, values, preset, folder):
    """Raise UserError if the command line, {field: value} and a preset or None, asks for what a run keeps for life."""
    if preset not in (None, config.name):
        raise UserError(f"--preset {preset}: {folder / 'last.pth'} is a run of {config.name}; leave --preset out")
    fixed = [n for n in values if n.startswith(FIXED) and n not in FREE and values[n] != field_of(config, n)]
    if fixed:
        raise UserError(f"--{fixed[0]} cannot change on resume: leave it out, or start a new run with --out DIR")
    before, after = (c.train.images_a_step for c in (config, override(config, values)))
    if after != before:
        raise UserError(
            f"--train.batch_size, --train.accumulate: {after} images a step, but the run began with {before}; "
            "keep their product, or start a new run with --out DIR"
        )


def note(trainer):
    """What a checkpoint needs besides the weights, the config and the step, so that `go_on` can continue it."""
    return {
        "optimizer": trainer.optimizer.state_dict(),
        "scaler": trainer.scaler.state_dict(),
        "ema_updates": trainer.ema.updates,
        "rows": trainer.rows,
        "best": trainer.best,
        "sums": trainer.sums.cpu(),
        "skipped": trainer.skipped.item(),
        "streak": trainer.streak.item(),
        "train_greys": greys(trainer),
    }


def go_on(trainer, state):
    """Continue in `trainer`, which has made no step yet, from what `checkpoint.load` returned for its last.pth.

    Raises UserError, and says what to do, if something is missing or damaged or if the data is not the run's.
    """
    path = trainer.folder / "last.pth"
    if "optimizer" not in state:
        raise UserError(f"{path}: made for sampling, it cannot be resumed")
    try:
        refuse_other_data(trainer, state, path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the one line below says it all
            put_back(trainer, state, path)
    except (LookupError, TypeError, ValueError, RuntimeError, AttributeError, ArithmeticError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:150]
        raise UserError(f"{path}: what resuming needs is missing or damaged ({reason})") from error


def put_back(trainer, state, path):
    """Copy `state` into the trainer."""
    checkpoint.load_weights(trainer.model, state["model"], path)
    checkpoint.load_weights(trainer.ema.model, state["ema"], path)
    trainer.optimizer.load_state_dict(state["optimizer"])
    for p, moments in trainer.optimizer.state.items():
        if not moments["exp_avg"].shape == moments["exp_avg_sq"].shape == p.shape:
            raise ValueError("a moment of the optimiser has another shape than its weight")
    if trainer.scaler.is_enabled() and state["scaler"]:
        trainer.scaler.load_state_dict(state["scaler"])
    trainer.ema.updates = int(state["ema_updates"])
    trainer.step = trainer.saved = state["step"]
    trainer.best = float(state["best"])
    trainer.rows = [{name: value + 0 for name, value in row.items()} for row in state["rows"]]  # + 0: only numbers
    trainer.sums.copy_(state["sums"])
    trainer.skipped.fill_(state["skipped"])
    trainer.streak.fill_(state["streak"])


def greys(trainer):
    """The mean grey level of all training images, or of 1,000 to 2,000 of them: a fingerprint of the data."""
    some = trainer.batches.indices[:: max(1, len(trainer.batches.indices) // 1000)]
    return torch.tensor([trainer.images.pixels[i].mean() for i in some])


def refuse_other_data(trainer, state, path):
    """Raise UserError if the data is not that of the saved run: in number, grey levels or classes."""
    images, cure = len(trainer.batches.indices), "bring them back or start a new run with --out"
    if (before := state.get("train_images")) != images:
        raise UserError(f"the data has changed: {images} training images, {before} when {path} was saved; {cure}")
    # another decoder may round otherwise; a picture that was exchanged has another mean
    before, now = state.get("train_greys"), greys(trainer)
    if before is not None and not (before.shape == now.shape and (before - now).abs().max() <= 2):
        raise UserError(f"the data has changed: other pictures than when {path} was saved; {cure}")
    if (before := state["classes"]) != trainer.classes:  # a folder renamed: the labels would mean other things
        raise UserError(
            f"the data has changed: classes {', '.join(trainer.classes) or 'none'}; they were {', '.join(before)} "
            f"when {path} was saved; {cure}"
        )
