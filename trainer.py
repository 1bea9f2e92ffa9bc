"""How is the network taught?

The loop: take a batch, add noise, predict, step, average, and now and then look at the result and save everything.
All randomness of step k is a function of (seed, k), so a run that was interrupted goes on as if it had not been.
The papers: Ho et al. 2020 ("DDPM", Alg. 1).  Read next: examine.py, and resume.py for how it goes on after a stop.

Letters: B batch, C channels, H height, W width.
"""

import contextlib
import errno
import json
import math
import os
import signal
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

import examine
import machine
import resume
import views
from config import UserError, out_channels, to_dict
from dataset.batches import Batches
from dataset.pixels import to_uint8
from diffusion import variants
from evaluation import features
from files import put
from models import checkpoint
from models.ema import EMA
from models.unet import UNet

READ_EVERY = 10  # steps between two looks at the loss: each look makes the host wait for the device


class Interrupted(Exception):
    """Ctrl-C or SIGTERM was noticed at a place where the state is whole."""


def lr_at(step, config, steps):
    """Learning rate of optimiser step `step` = 0, 1, ..., steps - 1: a linear rise, then constant or half a cosine."""
    warm = min(1.0, (step + 1) / max(1, config.warmup_steps))
    if config.lr_schedule == "constant" or step < config.warmup_steps:
        return config.lr * warm
    progress = (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
    return config.lr * 0.5 * (1 + math.cos(math.pi * progress))


def total_steps(config, train_images):
    """The budget in optimiser steps; epochs are rounded up to whole steps."""
    return config.steps or math.ceil(config.epochs * train_images / config.images_a_step)


def seed_everything(*numbers):
    """Seed torch on every device by a hash of `numbers`, for instance (seed, step)."""
    torch.manual_seed(int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]) >> 1)


class Trainer:
    """Everything that a run needs, in one place.

    config: the run.  images: dataset.sources.Images.  train, val: which of them to use, index arrays.
    folder: where everything is written.  group: from processes.start().
    precision: fp32 | bf16 | fp16 | auto, the `usual_precision`.  compiled: torch.compile the network.
    board: a board.Board that is shown each evaluation, or None.
    """

    def __init__(self, config, images, train, val, folder, group, precision="auto", compiled=False, board=None):
        self.config, self.images, self.folder = config, images, Path(folder)
        self.group, self.board = group, board
        self.device = device = group.device
        c = config.train
        if c.batch_size % group.world:
            raise UserError(f"--train.batch_size {c.batch_size}: not a multiple of the {group.world} processes")
        self.precision = machine.usual_precision(device) if precision == "auto" else precision
        self.steps = total_steps(c, len(train))
        self.classes = list(images.classes) if config.model.num_classes else []
        self.step = 0  # optimiser steps made

        seed_everything(c.seed)
        self.diffusion = variants.from_config(config.diffusion).to(device)
        self.model = UNet(config.model, config.data.channels, config.data.size, out_channels(config)).to(device)
        self.model = self.model.to(memory_format=torch.channels_last)
        self.ema = EMA(self.model, c.ema_decay, c.ema_warmup)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=c.lr, fused=True)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.precision == "fp16")
        self.compiled = compiled
        self.net = torch.compile(self.model) if compiled else self.model  # same weights, another way to run them
        if group.world > 1:
            self.net = DistributedDataParallel(self.net, device_ids=[device.index] if device.type == "cuda" else None)

        self.batches = Batches(
            images.pixels, images.labels if config.model.num_classes else None, train,
            batch_size=c.batch_size, seed=c.seed, flip=config.data.flip,
            device=device, rank=group.rank, world=group.world,
        )  # fmt: skip
        self.val = np.resize(np.random.default_rng(c.seed).permutation(val), c.val_images)  # repeated if too few
        self.rows = []  # metrics.csv, one dictionary an evaluation
        self.best = math.inf  # lowest validation loss so far
        # built before the training, as what it needs may be missing
        self.extract = features.extractor(c.distance_features, device) if c.distance_images else None
        self.skipped = torch.zeros((), device=device)  # steps without an update: gradient not finite
        self.streak = torch.zeros((), device=device)  # ... in a row
        # since the last row of the metrics: sums of the loss, the gradient norm, and 1
        self.sums = torch.zeros(3, dtype=torch.float64, device=device)
        self._start_clock()
        self.stop = False  # a signal came
        self.saved = None  # the step that last.pth holds

    def _start_clock(self):
        """Measure the speed from here on."""
        self.clock, self.clock_step = time.perf_counter(), self.step

    # ------------------------------------------------------------------ one step

    def draws(self, k):
        """Lines 2 to 4 of DDPM Alg. 1: the pictures x_0 of batch k, their labels y or None, levels t and noise ε.

        A function of (seed, k) alone, drawn for the whole batch; each process then takes its share.
        """
        c = self.config.train
        x_0, y = self.batches(k)
        seed_everything(c.seed, k)
        t = self.diffusion.draw_t(c.batch_size, self.device)
        eps = torch.randn(c.batch_size, *x_0.shape[1:], device=self.device)
        hidden = torch.rand(c.batch_size, device=self.device) < c.label_dropout
        mine = slice(self.group.rank, None, self.group.world)
        if y is not None:
            y = torch.where(hidden[mine], self.model.null_class, y)  # so that it learns without labels too: CFG
        return x_0.contiguous(memory_format=torch.channels_last), y, t[mine], eps[mine]

    def loss(self, k):
        """Mean of ‖ε - ε_θ‖² over batch k, line 5 of DDPM Alg. 1, or of what the diffusion has in its place."""
        x_0, y, t, eps = self.draws(k)
        seed, group = self.config.train.seed, self.group
        if group.world > 1:
            seed_everything(seed, k, group.rank + 1)  # dropout differs between processes; (seed, k, 0) is (seed, k)
        with self.autocast():
            return self.diffusion.loss(self.net, x_0, y, t=t, eps=eps).mean()

    def autocast(self):
        """`with trainer.autocast():` the network at the precision of the run."""
        return machine.autocast(self.device, self.precision)

    def train_step(self):
        """One optimiser step: DDPM Alg. 1, once around.

            x_0 ~ data,  t ~ uniform {1..T},  ε ~ N(0, I)                      draws()
            a gradient step on ‖ε - ε_θ(√ᾱ_t x_0 + √(1-ᾱ_t) ε, t)‖²            loss(), backward(), Adam

        The rest is accumulation, clipping, leaving out a step that is not finite, and the average.  Nothing here makes
        the host wait for the device.
        """
        c = self.config.train
        for weights in self.optimizer.param_groups:
            weights["lr"] = lr_at(self.step, c, self.steps)

        # the gradient of the mean loss over `accumulate` batches
        total = torch.zeros((), device=self.device)
        for micro in range(c.accumulate):
            final = micro == c.accumulate - 1
            with contextlib.nullcontext() if final or self.group.world == 1 else self.net.no_sync():
                loss = self.loss(self.step * c.accumulate + micro) / c.accumulate
                self.scaler.scale(loss).backward()
            total += loss.detach()

        # clip it
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), c.clip_norm or math.inf)

        # Adam, then the average.  A step whose gradient is not finite must not happen, and `if bad:` would make the
        # host wait for the device.  Fused Adam does nothing where its attribute found_inf is 1: the fp16 scaler sets
        # that by itself; without it, we do.
        bad = ~torch.isfinite(norm)
        if not self.scaler.is_enabled():
            self.optimizer.found_inf = bad.float()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.ema.update(self.model, skip=bad)

        # bookkeeping, on the device
        self.skipped += bad
        self.streak = (self.streak + 1) * bad
        self.sums += torch.where(bad, 0.0, torch.stack([total, norm, torch.ones_like(norm)])).double()
        self.step += 1

    # ------------------------------------------------------------------ looking at the result

    def evaluate(self):
        """Validate, sample, write the metrics, and save; best.pth too if the validation loss is the lowest so far."""
        sums = self.group.sum(self.sums[:1]) / self.group.world  # each process saw its share of the loss
        count = self.sums[2].item() or math.nan  # of no step at all there is no mean
        seconds = time.perf_counter() - self.clock
        c = self.config.train
        row = {
            "step": self.step,
            "epoch": self.step * c.images_a_step / len(self.batches.indices),
            "train_loss": sums[0].item() / count,
            **examine.validate(self),
            **examine.distance(self),
            "lr": lr_at(max(0, self.step - 1), c, self.steps),
            "grad_norm": self.sums[1].item() / count,
            "skipped": int(self.skipped.item()),
            "images_per_s": (self.step - self.clock_step) * c.images_a_step / seconds,
        }
        if not math.isfinite(row["val_loss"]):
            raise UserError(f"the validation loss is {row['val_loss']}: {self._last_good()}; try a lower --train.lr")
        if self.group.main:
            images, stages = examine.sample(self, self.config.sample.n)
            drawn = views.save_samples(self.folder, self.step, images, stages, self.config.data.size)
            if self.board:
                self.board.show(row, drawn)
        self.rows.append(row)
        best = row["val_loss"] < self.best
        self.best = min(self.best, row["val_loss"])
        self.sums.zero_()
        if self.group.main:
            if best:
                self._save("best.pth", resumable=False)
            self.save()
        self.group.wait()
        self.saved = self.step  # by the main process, for all
        self._start_clock()  # sampling and saving do not count as training time
        return row, best

    def _last_good(self):
        last = self.folder / "last.pth"
        if last.exists():
            return f"the last good checkpoint is {last} (step {self.saved:,})"
        return "nothing was saved yet"

    # ------------------------------------------------------------------ the loop

    @property
    def finished(self):
        """Nothing is left to do: the budget is used up, and the result has been looked at."""
        return self.step > self.steps or (self.step == self.steps and self._evaluated())

    def _evaluated(self):
        return bool(self.rows) and self.rows[-1]["step"] >= self.step

    def fit(self):
        """Train until the budget is used up.  Raises KeyboardInterrupt, after saving, when a signal asked to stop."""
        with self._signals(), self._bar() as bar:
            try:
                self._start_clock()
                first = self.step
                while True:
                    due = self.step % self.config.train.eval_every == 0 or self.step == self.steps
                    if due and self.step and not self._evaluated():
                        self._report(bar, *self.evaluate())
                    if self.step >= self.steps:
                        break
                    self.train_step()
                    bar.update(1)
                    if self.compiled and self.step == first + 1:
                        self.sums.tolist()  # wait for the device: minutes of compiling do not count as training time
                        self._start_clock()
                    if self.step % READ_EVERY == 0:
                        self._look(bar)
                    if self.group.world == 1 or self.step % READ_EVERY == 0:
                        self.check_stop(everyone=True)
            except (Interrupted, OSError) as error:
                if isinstance(error, OSError):
                    if error.errno != errno.EIO:
                        raise
                    self._hang_up()  # a terminal that is gone may be noticed by what cannot be written to it
                if self.group.main:
                    self.save()
                raise KeyboardInterrupt from None

    def _bar(self):
        return tqdm(total=self.steps, initial=self.step, unit="step", disable=None if self.group.main else True,
                    dynamic_ncols=True)  # fmt: skip

    def _look(self, bar):
        """Read the averages: for the bar, and to notice a training that has gone wrong for good."""
        loss, _, count = self.sums.tolist()
        images = (self.step - self.clock_step) * self.config.train.images_a_step
        speed = images / (time.perf_counter() - self.clock)
        lr = self.optimizer.param_groups[0]["lr"]
        bar.set_postfix_str(f"loss {loss / (count or math.nan):.4f}, lr {lr:.1e}, {speed:,.0f} images/s", refresh=False)
        if self.streak.item() >= self.config.train.max_skips:
            raise UserError(
                f"{int(self.streak.item())} steps in a row had a gradient that is not finite; {self._last_good()}; "
                "try a lower --train.lr or --precision fp32"
            )

    def _report(self, bar, row, best):
        if self.group.main:
            bar.write(
                f"step {row['step']:>7,}/{self.steps:,}   train {row['train_loss']:.4f}   val {row['val_loss']:.4f}"
                f"{' best' if best else '     '}"
                + (f"   {row['images_per_s']:,.0f} images/s" if row["images_per_s"] else "")  # 0: just resumed
                + (f"   skipped {row['skipped']}" if row["skipped"] else "")
            )

    @contextlib.contextmanager
    def _signals(self):
        """The first Ctrl-C, SIGTERM or SIGHUP asks to stop at the next whole state; a second one stops at once."""

        def ask(number, frame):
            if number == hangup:
                self._hang_up()
            elif self.stop:
                raise KeyboardInterrupt
            self.stop = True

        self.terminals = [stream for stream in (1, 2) if os.isatty(stream)]
        hangup = getattr(signal, "SIGHUP", None)  # Windows has none
        heard = [signal.SIGINT, signal.SIGTERM]
        if hangup and signal.getsignal(hangup) != signal.SIG_IGN:  # as under nohup
            heard.append(hangup)
        old = {s: signal.signal(s, ask) for s in heard}
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)

    def _hang_up(self):
        """The terminal is gone, and whatever is written to it would fail: write it nowhere."""
        for stream in self.terminals:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)

    def check_stop(self, everyone=False):
        """Raise Interrupted if a signal came; with several processes only where `everyone` asks together."""
        stop = self.stop
        if self.group.world > 1:
            stop = everyone and self.group.sum(torch.tensor(float(stop), device=self.device)).item() > 0
        if stop:
            raise Interrupted

    # ------------------------------------------------------------------ files

    def open_folder(self):
        """Create the run folder, show the data as the network sees it, and note the config."""
        try:
            (self.folder / "samples").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot create {self.folder}: {error.strerror}") from None
        self.tidy()
        put(self.folder / "config.json", Path.write_text, json.dumps(to_dict(self.config), indent=2) + "\n")
        x, _ = self.batches(0)
        views.save_data(self.folder, to_uint8(x).cpu(), self.config.data.size)
        if self.rows:
            self.write_views()

    def tidy(self):
        """Remove what a process that was killed while saving has left."""
        for leftover in (*self.folder.glob(".*.tmp"), *(self.folder / "samples").glob(".*.tmp")):
            leftover.unlink(missing_ok=True)

    def save(self):
        """Write last.pth, and then what only shows its content in another way."""
        self._save("last.pth", resumable=True)
        self.saved = self.step
        self.write_views()

    def write_views(self):
        """Write metrics.csv and loss.png, and at the end of the run strips.gif."""
        views.write_metrics(self.folder, self.rows)
        if self.finished:
            views.animate_strips(self.folder)

    def _save(self, name, resumable):
        more = resume.note(self) if resumable else {}
        checkpoint.save(
            self.folder / name, self.config, classes=self.classes,
            model=self.model.state_dict(), ema=self.ema.model.state_dict(), step=self.step,
            train_images=len(self.batches.indices), **more,
        )  # fmt: skip
