"""The loop: what it writes, that it can be interrupted anywhere, and that nothing spoils the weights."""

import csv
import json
import math
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image, ImageSequence

import examine
import machine
import main
import resume
import trainer as trainer_module
import views
from config import PRESETS, Train, UserError, from_dict, override, to_dict
from dataset import pictures, sources
from dataset.batches import Batches
from dataset.pixels import to_uint8
from diffusion.process import GaussianDiffusion
from diffusion.samplers import ddim
from diffusion.steps import image_noise, spaced
from files import locked
from models import checkpoint
from processes import Processes, start
from trainer import Trainer, lr_at, total_steps

SMOKE = ("--preset", "smoke")


def small(folder="run", precision="auto", group=None, **values):
    """A Trainer on a few textiles."""
    values = {"train.steps": 4, "train.eval_every": 2, **values}
    config = override(PRESETS["smoke"], values)
    images = sources.load("textiles", size=config.data.size, channels=3, count=config.data.count)
    train, val = sources.split(images, config.data.val_fraction, 0)
    t = Trainer(config, images, train, val, folder, group or start("cpu"), precision)
    t.open_folder()
    return t


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def same(a, b, path=""):
    """Every tensor and number of two nested states is equal bit for bit; clock readings are left out."""
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), path
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a:
            if key != "images_per_s":
                same(a[key], b[key], f"{path}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), path
        for i, (x, y) in enumerate(zip(a, b)):
            same(x, y, f"{path}[{i}]")
    else:
        assert a == b, path


def last(folder):
    return checkpoint.load(folder / "last.pth")[1]


# ---------------------------------------------------------------- learning rate and budget


def test_the_learning_rate_rises_linearly_and_then_stays():
    c = Train(lr=1.0, warmup_steps=4)
    assert [lr_at(s, c, 100) for s in (0, 1, 3, 4, 99)] == [0.25, 0.5, 1.0, 1.0, 1.0]


def test_the_cosine_learning_rate_falls_to_zero_at_the_end():
    c = Train(lr=2.0, warmup_steps=10, lr_schedule="cosine")
    assert lr_at(9, c, 110) == 2.0 == lr_at(10, c, 110)
    assert lr_at(60, c, 110) == pytest.approx(1.0)
    assert lr_at(109, c, 110) == pytest.approx(2.0 * 0.5 * (1 + math.cos(math.pi * 0.99)))
    assert lr_at(110, c, 110) == pytest.approx(0.0, abs=1e-12)


def test_epochs_are_counted_in_whole_images():
    assert total_steps(Train(epochs=3, batch_size=4, accumulate=2), 100) == math.ceil(300 / 8)
    assert total_steps(Train(steps=7, epochs=3), 100) == 7


# ---------------------------------------------------------------- one step


def test_a_step_is_alg_1_with_adam_clipping_and_ema():
    """Recompute one optimiser step from its parts: t, eps, loss, clipped gradient, Adam's first update."""
    t = small(**{"train.lr": 1e-2, "train.clip_norm": 0.01, "train.label_dropout": 0.0, "train.ema_decay": 0.9})
    before = {k: v.clone() for k, v in t.model.state_dict().items()}
    x_0, y = t.batches(0)
    trainer_module.seed_everything(0, 0)
    level, eps = torch.randint(1, 51, (4,)), torch.randn(4, 3, 16, 16)
    loss = t.diffusion.loss(t.model, x_0, y, t=level, eps=eps).mean()
    grads = torch.autograd.grad(loss, list(t.model.parameters()), allow_unused=True)
    norm = math.sqrt(sum(g.square().sum().item() for g in grads if g is not None))
    assert norm > 0.01
    t.train_step()
    for (name, p), g in zip(t.model.named_parameters(), grads):
        g = torch.zeros_like(p) if g is None else g * (0.01 / norm)
        expected = before[name] - 1e-2 * g / (g.abs() + 1e-8)
        torch.testing.assert_close(p.detach(), expected, rtol=2e-3, atol=2e-4)
        shadow = t.ema.model.get_parameter(name)
        torch.testing.assert_close(shadow, 0.1 * before[name] + 0.9 * p.detach(), rtol=1e-4, atol=1e-6)
    assert t.sums[0].item() == pytest.approx(loss.item(), rel=1e-5)
    assert t.sums[1].item() == pytest.approx(norm, rel=1e-4)


def test_in_fp16_the_gradients_are_clipped_after_the_scale_of_the_loss_is_taken_off():
    """The norm is that of fp32, and what reaches Adam, whose first moment is 0.1 g, has the norm asked for."""
    options = {"train.clip_norm": 0.01}
    plain, half = small(**options), small("half", "fp16", **options)
    scale = half.scaler.get_scale()
    for t in (plain, half):
        t.train_step()
    assert scale > 1000 and half.skipped == 0
    assert half.sums[1].item() == pytest.approx(plain.sums[1].item(), rel=0.02)
    moments = [half.optimizer.state[p]["exp_avg"] for p in half.model.parameters()]
    assert math.sqrt(sum(m.square().sum().item() for m in moments)) == pytest.approx(0.1 * 0.01, rel=1e-3)


def test_accumulating_equals_one_batch_of_the_same_images():
    """Two halves of 2 images against a whole of 4, fed the same t and eps."""
    weights, sums = [], []
    x, y = small().batches(0)
    torch.manual_seed(0)
    level, eps = torch.randint(1, 51, (4,)), torch.randn(4, 3, 16, 16)
    for accumulate in (1, 2):
        t = small(**{"train.batch_size": 4 // accumulate, "train.accumulate": accumulate})

        def loss(k, t=t, accumulate=accumulate):
            part = slice(None) if accumulate == 1 else slice(2 * k, 2 * k + 2)
            return t.diffusion.loss(t.net, x[part], y[part], t=level[part], eps=eps[part]).mean()

        t.loss = loss
        t.train_step()
        weights.append(t.model.state_dict())
        sums.append(t.sums)
    torch.testing.assert_close(*sums, rtol=1e-4, atol=0)  # loss and gradient norm: Adam's first step hides their scale
    for a, b in zip(*(w.values() for w in weights)):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_every_forward_pass_takes_the_next_batch():
    t, asked = small(**{"train.accumulate": 2}), []
    real = t.loss
    t.loss = lambda k: asked.append(k) or real(k)
    for _ in range(3):
        t.train_step()
    assert asked == [0, 1, 2, 3, 4, 5]


def test_a_clip_norm_of_zero_leaves_the_gradient_as_it_is():
    """Adam's first moment is then 0.1 of the whole gradient."""
    t = small(**{"train.clip_norm": 0.0})
    t.train_step()
    moments = [t.optimizer.state[p]["exp_avg"] for p in t.model.parameters()]
    norm = math.sqrt(sum(m.square().sum().item() for m in moments))
    assert norm == pytest.approx(0.1 * t.sums[1].item(), rel=1e-4) and norm > 0
    squares = sum(t.optimizer.state[p]["exp_avg_sq"].sum().item() for p in t.model.parameters())
    assert squares == pytest.approx(0.001 * t.sums[1].item() ** 2, rel=1e-3)  # and its second 0.001 of the square


def test_the_network_is_taught_in_training_mode():
    assert all(part.training for part in small(**{"model.dropout": 0.5}).model.modules())


@pytest.mark.parametrize("precision", list(machine.PRECISIONS))
def test_the_network_computes_in_the_precision_asked_for(precision):
    t, seen = small(precision=precision), []
    t.model.stem.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    t.loss(0)
    assert seen == [machine.PRECISIONS[precision]]


@pytest.mark.parametrize(
    ("device", "capability", "usual"),
    [("cpu", None, "fp32"), ("cuda", (7, 5), "fp32"), ("cuda", (8, 0), "bf16"), ("cuda", (9, 0), "bf16")],
)
def test_the_usual_precision_is_bf16_where_the_gpu_computes_in_it(monkeypatch, device, capability, usual):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert machine.usual_precision(torch.device(device)) == usual
    assert small().precision == "fp32"


def test_the_average_warms_up_as_the_config_says():
    t = small(**{"train.ema_warmup": "power"})
    t.ema.updates = 3
    assert t.ema.decay() == pytest.approx(1 - 4**-0.75)


def test_the_average_is_as_slow_as_the_config_says():
    t = small(**{"train.ema_decay": 0.6})
    t.ema.updates = 10**6
    assert t.ema.decay() == 0.6


def test_another_seed_begins_with_other_weights_and_draws_everything_anew():
    def drawn(seed):
        run, seen = small(f"run{seed}", **{"train.seed": seed, "data.count": 40}), []
        run.diffusion.loss = lambda model, x_0, y, t, eps: seen.append((t, eps)) or torch.zeros(len(t))
        run.loss(0), examine.validate(run)
        start = next(examine.walk(run, range(1))).x
        return [run.model.stem.weight, torch.from_numpy(run.batches.numbers(0)), *seen[0], seen[1][1], start]

    assert not any(torch.equal(one, other) for one, other in zip(drawn(0), drawn(1)))


def test_pictures_are_mirrored_only_if_the_config_says_so():
    mirrored, plain = (small(**{"data.flip": flip, "train.batch_size": 16}).batches(0)[0] for flip in (True, False))
    turned = [torch.equal(a, b.flip(-1)) for a, b in zip(mirrored, plain)]
    assert 0 < sum(turned) < 16
    assert all(torch.equal(a, b) for a, b, is_turned in zip(mirrored, plain, turned) if not is_turned)


def test_processes_share_the_draws_of_a_batch_and_drop_out_differently(monkeypatch):
    """Each of two processes takes every second of what one alone would draw; what the networks draw is their own."""
    monkeypatch.setattr(trainer_module, "DistributedDataParallel", lambda net, device_ids: net)
    levels, own, seeds = {}, {}, {}
    for rank, world in ((0, 1), (0, 2), (1, 2)):
        t = small(group=Processes(rank, world, torch.device("cpu")))

        def network(x, level, y, key=(rank, world)):
            levels[key], seeds[key], own[key] = level, torch.initial_seed(), torch.rand(4)
            return torch.zeros_like(x)

        t.net = network
        t.loss(0)
    assert torch.equal(levels[0, 1], torch.stack([levels[0, 2], levels[1, 2]], dim=1).flatten())
    assert not torch.equal(own[0, 2], own[1, 2])
    assert len(set(seeds.values())) == 3  # nor do the first one's begin again with the numbers that gave t and ε


def test_the_draws_of_a_batch_are_a_function_of_the_seed_and_its_number():
    t = small()
    first, other = t.draws(3), t.draws(4)
    torch.rand(7)  # whatever else was drawn meanwhile
    for a, again, b, name in zip(first, t.draws(3), other, ("x_0", "y", "t", "eps")):
        assert torch.equal(a, again) and not torch.equal(a, b), name
    assert not torch.equal(first[3], small(**{"train.seed": 1}).draws(3)[3])


def test_labels_are_hidden_at_the_stated_rate():
    t = small(**{"train.label_dropout": 0.25, "train.batch_size": 1000, "data.count": 8})
    seen = []
    t.net = lambda x, level, y: seen.append(y) or x
    t.loss(0)
    share = (seen[0] == t.model.null_class).float().mean().item()
    assert 0.2 < share < 0.3


def test_training_learns_on_a_few_images():
    t = small(**{"train.steps": 60, "train.lr": 3e-3, "train.eval_every": 30, "train.ema_decay": 0.9})
    t.fit()
    assert t.rows[-1]["train_loss"] < 0.8 * t.rows[0]["train_loss"] or t.rows[-1]["val_loss"] < t.rows[0]["val_loss"]


# ---------------------------------------------------------------- what a run leaves behind


def test_a_run_writes_everything_it_promises(run_folder):
    names = {str(p.relative_to(run_folder)) for p in run_folder.rglob("*") if p.is_file()}
    samples = {"samples/data.png", "samples/strips.gif"}
    samples |= {f"samples/{kind}_000000{step}.png" for kind in ("step", "strip") for step in (4, 8)}
    assert names >= {"config.json", "last.pth", "best.pth", "metrics.csv", "loss.png", *samples}
    assert not [n for n in names if n.endswith(".tmp")]
    assert from_dict(json.loads((run_folder / "config.json").read_text())) == PRESETS["smoke"]
    rows = list(csv.DictReader((run_folder / "metrics.csv").read_text().splitlines()))
    assert [int(r["step"]) for r in rows] == [4, 8]
    assert all(math.isfinite(float(v)) for r in rows for v in r.values())
    for r in rows:  # the validation loss is the mean of its quarters
        assert float(r["val_loss"]) == pytest.approx(np.mean([float(r[f"val_q{q}"]) for q in (1, 2, 3, 4)]), rel=1e-5)
    for png in run_folder.rglob("*.png"):
        with Image.open(png) as image:
            image.load()
    best, state = checkpoint.load(run_folder / "best.pth")
    assert best == PRESETS["smoke"] and len(state["classes"]) == 12 and "optimizer" not in state
    assert last(run_folder)["best"] == min(float(r["val_loss"]) for r in rows)


def test_the_validation_loss_is_fixed_and_moves_with_the_ema_weights_only():
    t = small()
    first = examine.validate(t)
    torch.manual_seed(123)
    assert examine.validate(t) == first
    with torch.no_grad():
        t.model.head.bias.add_(1.0)
    assert examine.validate(t) == first
    with torch.no_grad():
        t.ema.model.head.bias.add_(1.0)
    assert examine.validate(t)["val_loss"] > first["val_loss"]


@pytest.mark.parametrize(("n", "expected"), [(8, [4, 10, 16, 22, 29, 35, 41, 47]), (150, sorted([*range(1, 51)] * 3))])
def test_validation_timesteps_are_spread_evenly_over_1_to_T(n, expected):
    """The middles of n equal parts: two in each quarter of the 50, or each of the 50 three times."""
    t, seen = small(**{"train.val_images": n}), []
    t.ema.model = lambda x, level, y: seen.append(level) or torch.zeros_like(x)
    examine.validate(t)
    assert sorted(torch.cat(seen).tolist()) == expected


def test_the_quarters_go_from_little_noise_to_nearly_all_noise():
    """The loss says its own timestep: each of the 50 three times."""
    run = small(**{"train.val_images": 150})
    run.diffusion.loss = lambda model, x_0, y, t, eps: t.double()
    found = examine.validate(run)
    assert [found[name] for name in views.QUARTERS] == pytest.approx([7.0, 19.5, 32.0, 44.5])
    assert found["val_loss"] == pytest.approx(25.5)


def test_a_run_learns_from_one_part_of_the_data_and_is_validated_on_the_other(program, monkeypatch):
    """Picture by picture, as the process is shown them."""
    seen, real = {True: set(), False: set()}, GaussianDiffusion.loss

    def loss(self, model, x_0, y=None, **more):
        seen[torch.is_grad_enabled()] |= {picture.numpy().tobytes() for picture in to_uint8(x_0)}
        return real(self, model, x_0, y, **more)

    monkeypatch.setattr(GaussianDiffusion, "loss", loss)
    flags = ("--data.count", 40, "--data.flip", "false", "--train.val_images", 10)
    assert program("main", *SMOKE, *flags)[0] == 0
    cloth = sources.load("textiles", size=(16, 16), channels=3, count=40)
    taught, held_out = ({cloth.pixels[i].tobytes() for i in part} for part in sources.split(cloth, 0.25, 0))
    assert seen[True] <= taught and seen[False] == held_out


def test_validation_takes_pictures_from_all_that_were_held_out_and_tells_their_labels():
    """The first ones of a folder would all be of one class."""
    t, seen = small(**{"data.count": 80, "data.val_fraction": 0.5, "train.val_images": 8}), []
    _, held_out = sources.split(t.images, 0.5, 0)
    assert set(t.val) < set(held_out) and len(set(t.val)) == 8 and t.val.max() > held_out[20]
    t.ema.model = lambda x, level, y: seen.append(y) or torch.zeros_like(x)
    examine.validate(t)
    assert torch.cat(seen).tolist() == t.images.labels[t.val].tolist()


def test_the_grid_and_the_strip_are_ddim_as_the_config_says():
    """On the averaged weights, classes in turn; a stage of the strip is x_t and then the guess."""
    t = small(**{"sample.eta": 0.7, "sample.guidance": 3.0, "sample.steps": 4})
    torch.manual_seed(0)
    with torch.no_grad():  # untrained, the last layer is silent and the label is not heard
        for p in t.ema.model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    denoise = t.diffusion.denoiser(t.ema.model, torch.tensor([0, 1, 2]), guidance=3.0)
    noise = image_noise(0, range(3))
    x_T = noise(torch.empty(3, 3, 16, 16))
    steps = list(ddim(denoise, t.diffusion.schedule, x_T, timesteps=spaced(50, 4), eta=0.7, noise_like=noise))
    images, stages = examine.sample(t, 3)
    assert torch.equal(images, to_uint8(steps[-1].x)) and len(stages) == 4
    for (x, x0), step in zip(stages, steps):
        assert torch.equal(x, to_uint8(step.x[0])) and torch.equal(x0, to_uint8(step.x0[0]))


def test_a_grid_larger_than_a_batch_is_drawn_in_batches():
    """Or the first evaluation of a network that just fits in training would not fit, after hours of it."""

    def lively(batch_size):
        t = small(**{"train.batch_size": batch_size, "sample.eta": 0.7})
        torch.manual_seed(0)
        with torch.no_grad():  # untrained, it would hear neither the label nor the noise on the way
            for p in t.ema.model.parameters():
                p.add_(0.1 * torch.randn_like(p))
        return t

    t, asked = lively(4), []
    t.ema.model.register_forward_pre_hook(lambda model, inputs: asked.append(len(inputs[0])))
    images, stages = examine.sample(t, 10)
    assert asked == [4] * 10 + [2] * 5 and len(stages) == 5  # of the first picture alone
    assert torch.equal(stages[-1][0], images[0])
    assert (images.int() - examine.sample(lively(10), 10)[0].int()).abs().max() <= 1
    assert main.shrink(PRESETS["pokemon"]).sample.n == PRESETS["pokemon"].sample.n  # so --dry-run draws as many


def test_the_strip_ends_in_the_first_picture_of_the_grid(run_folder):
    grid, strip = (pictures.load_png(run_folder / f"samples/{name}_0000008.png") for name in ("step", "strip"))
    assert torch.equal(strip[:, 2:66, -66:-2], grid[:, 2:66, 2:66])


def test_a_row_of_the_metrics_is_about_the_steps_since_the_last_one(monkeypatch):
    """Steps take one second, pictures and files a hundred each, which do not count as training time."""
    t = small(**{"train.accumulate": 2, "train.lr_schedule": "cosine"})
    clock, sums, rates, step = [0.0], [], [], t.train_step

    def train_step():
        before = t.sums.clone()
        step()
        clock[0] += 1
        sums.append((t.sums - before)[:2])
        rates.append(t.optimizer.param_groups[0]["lr"])

    def slowly(work):
        def slow(*args):
            clock[0] += 100
            return work(*args)

        return slow

    monkeypatch.setattr(trainer_module.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(examine, "sample", slowly(examine.sample))
    t.train_step, t.save = train_step, slowly(t.save)
    t.fit()
    assert [r["step"] for r in t.rows] == [2, 4]
    for row, some in zip(t.rows, (slice(0, 2), slice(2, 4))):
        loss, norm = torch.stack(sums[some]).mean(dim=0).tolist()
        assert row["train_loss"] == pytest.approx(loss) and row["grad_norm"] == pytest.approx(norm)
        assert row["epoch"] == pytest.approx(row["step"] * 8 / 6) and row["lr"] == rates[row["step"] - 1]
        assert row["images_per_s"] == pytest.approx(8)


def test_a_validation_loss_that_is_not_finite_stops_the_run(monkeypatch):
    t = small()
    monkeypatch.setattr(examine, "validate", lambda _: {"val_loss": math.nan})
    with pytest.raises(UserError, match="the validation loss is nan"):
        t.fit()


def test_each_curve_bears_its_own_name(monkeypatch, tmp_path):
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **kwargs: figures.append(self))
    row = {"train_loss": 5.0, "val_loss": 6.0, "val_q1": 1.0, "val_q2": 2.0, "val_q3": 3.0, "val_q4": 4.0}
    views.plot(tmp_path / "loss.png", [{"step": 10, **row}])
    drawn = {line.get_label(): line.get_ydata()[0] for axes in figures[0].axes for line in axes.get_lines()}
    quarters = {"t in the first quarter (little noise)": 1, "second": 2, "third": 3, "last (nearly all noise)": 4}
    assert drawn == {"train": 5, "validation (EMA)": 6, **quarters}
    titles = ["loss", "validation loss by quarter of t"]
    assert [(axes.get_title(), axes.get_xlabel()) for axes in figures[0].axes] == [
        (t, "optimiser step") for t in titles
    ]


def test_the_film_of_the_strips_goes_forward(tmp_path):
    t = small()
    for step in (2, 10, 30):
        pictures.save_png(t.folder / f"samples/strip_{step:07d}.png", torch.full((3, 8, 8), step, dtype=torch.uint8))
    views.animate_strips(t.folder)
    with Image.open(t.folder / "samples/strips.gif") as film:
        shades = [np.asarray(frame.convert("L"))[0, 0] for frame in ImageSequence.Iterator(film)]
    assert shades == [2, 10, 30]


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="asks Linux for the high-water mark")
def test_peak_memory_is_the_high_water_mark_of_the_process_in_gib():
    with open("/proc/self/status") as status:
        kib = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    assert machine.peak_memory(torch.device("cpu")) == pytest.approx(kib / 2**20, rel=0.05)


def test_on_macos_the_system_counts_memory_in_bytes(monkeypatch):
    monkeypatch.setattr(pytest.importorskip("resource"), "getrusage", lambda _who: SimpleNamespace(ru_maxrss=3 * 2**30))
    monkeypatch.setattr(sys, "platform", "darwin")
    assert machine.peak_memory(torch.device("cpu")) == 3
    monkeypatch.setattr(sys, "platform", "linux")
    assert machine.peak_memory(torch.device("cpu")) == 3 * 2**10  # KiB


def test_peak_memory_on_a_gpu_is_that_of_its_tensors_in_gib(monkeypatch):
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 3 * 2**30)
    assert machine.peak_memory(torch.device("cuda", 1)) == 3


# ---------------------------------------------------------------- interruption and resume


def test_2n_steps_equal_n_steps_a_stop_and_n_more_bit_for_bit(program, tmp_path):
    flags = (*SMOKE, "--model.dropout", "0.1", "--train.steps", "8", "--train.accumulate", "2")
    assert program("main", *flags, "--out", "whole")[0] == 0
    interrupt_at(3)
    code, out, _ = program("main", *flags, "--out", "halves")
    assert code == 130 and "--preset smoke --out halves --resume" in out
    restore()
    assert last(tmp_path / "halves")["step"] == 3
    assert program("main", *SMOKE, "--out", "halves", "--resume")[0] == 0
    same(last(tmp_path / "whole"), last(tmp_path / "halves"))
    whole, halves = (checkpoint.load(tmp_path / f / "best.pth")[1] for f in ("whole", "halves"))
    same(whole, halves)


def test_every_count_comes_back_on_resume():
    """The lowest loss among them: a worse evaluation must not replace best.pth."""
    t = small()
    t.train_step()
    t.skipped += 3
    t.streak += 2
    t.best = 0.25
    t.save()
    again = small()
    resume.go_on(again, last(t.folder))
    assert (again.step, again.ema.updates, again.best, again.skipped, again.streak) == (1, 1, 0.25, 3, 2)


def test_compiling_does_not_count_as_training_time(monkeypatch):
    t, clock = small(**{"train.steps": 4, "train.eval_every": 4}), [0.0]
    real = t.train_step

    def train_step():
        real()
        clock[0] += 100 if t.step == 1 else 1

    t.train_step, t.compiled = train_step, True
    monkeypatch.setattr(trainer_module.time, "perf_counter", lambda: clock[0])
    t.fit()
    assert t.rows[0]["images_per_s"] == pytest.approx(t.config.train.batch_size)


def test_several_processes_stop_together_where_all_of_them_ask():
    """A signal to the other one is heard; one's own waits until then, or the other would wait for ever."""
    t = small()
    for others, own in ((1.0, False), (0.0, True)):
        t.group = SimpleNamespace(world=2, sum=lambda mine, others=others: mine + others)
        t.stop = own
        t.check_stop()
        with pytest.raises(trainer_module.Interrupted):
            t.check_stop(everyone=True)


def test_several_processes_that_no_signal_reached_go_on():
    t = small()
    t.group = SimpleNamespace(world=2, sum=lambda mine: mine)
    t.check_stop(everyone=True)


def test_the_loss_is_read_at_every_tenth_step_alone(monkeypatch):
    """Each look makes the host wait for the device."""
    t, looked = small(**{"train.steps": 30, "train.eval_every": 1000}), []
    monkeypatch.setattr(t, "_look", lambda bar: looked.append(t.step))
    t.fit()
    assert looked == [10, 20, 30]


REAL_STEP = Trainer.train_step


def interrupt_at(step, number=signal.SIGINT):
    """Send ourselves a signal in the middle of a step."""

    def train_step(self):
        REAL_STEP(self)
        if self.step == step:
            os.kill(os.getpid(), number)

    Trainer.train_step = train_step


def restore():
    Trainer.train_step = REAL_STEP


@pytest.fixture(autouse=True)
def _restore():
    yield
    restore()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_training_saves_and_says_how_to_go_on(program, tmp_path, number):
    interrupt_at(5, number)
    code, out, err = program("main", *SMOKE)
    assert code == 130 and "stopped at step 5; go on with: python main.py --preset smoke --resume\n" in out
    assert "Traceback" not in err
    assert last(tmp_path / "ckpt/smoke")["step"] == 5


def test_several_processes_notice_a_signal_at_the_next_tenth_step(monkeypatch):
    monkeypatch.setattr(trainer_module, "DistributedDataParallel", lambda net, device_ids: net)
    monkeypatch.setattr(Processes, "sum", lambda self, tensor: tensor)
    monkeypatch.setattr(Processes, "wait", lambda self: None)
    t = small(group=Processes(0, 2, torch.device("cpu")), **{"train.steps": 30, "train.eval_every": 1000})
    interrupt_at(3)
    with pytest.raises(KeyboardInterrupt):
        t.fit()
    assert last(t.folder)["step"] == 10


def test_a_signal_where_nothing_is_kept_names_no_command_to_go_on_with(program, monkeypatch):
    def unsaved(self):
        raise KeyboardInterrupt

    interrupt_at(2)
    code, out, _ = program("main", *SMOKE, "--dry-run")
    assert code == 130 and out.endswith("\nstopped; nothing was kept\n")
    monkeypatch.setattr(Trainer, "fit", unsaved)
    code, out, _ = program("main", *SMOKE)
    assert code == 130 and out.endswith("\nstopped; nothing was kept\n")


def test_the_command_to_go_on_has_the_flags_that_no_checkpoint_holds():
    def said(*argv):
        return main._again(main.parser().parse_args(argv))

    assert said(*SMOKE) == "python main.py --preset smoke --resume"
    assert said(*SMOKE, "--train.lr", "1e-3", "--data", "pets") == "python main.py --preset smoke --resume"
    assert said("--out", "my run", "--precision", "fp16", "--compile") == (
        "python main.py --out 'my run' --precision fp16 --compile --resume"  # the preset may be any
    )
    assert said("--device", "cuda:1", "--tensorboard") == "python main.py --device cuda:1 --tensorboard --resume"
    assert said("--resume") == "python main.py --resume"


@pytest.mark.parametrize("where", ["validate", "sample"])
def test_a_signal_during_an_evaluation_is_made_up_for_on_resume(program, tmp_path, monkeypatch, where):
    assert program("main", *SMOKE, "--out", "whole")[0] == 0
    real = getattr(examine, where)

    def interrupted(trainer, *args):
        if trainer.step == 8:
            os.kill(os.getpid(), signal.SIGINT)
        return real(trainer, *args)

    monkeypatch.setattr(examine, where, interrupted)
    assert program("main", *SMOKE, "--out", "halves")[0] == 130
    monkeypatch.setattr(examine, where, real)
    assert last(tmp_path / "halves")["step"] == 8 and len(last(tmp_path / "halves")["rows"]) == 1
    code, out, _ = program("main", *SMOKE, "--out", "halves", "--resume")
    assert code == 0 and "\nstep       8/8 " in out and "images/s" not in out  # no step was made: no speed
    same(last(tmp_path / "whole"), last(tmp_path / "halves"))


def test_a_second_signal_while_saving_leaves_the_last_good_file(program, tmp_path, monkeypatch):
    interrupt_at(5)
    real = torch.save

    def save(state, path):
        real({"half": 1}, path)
        os.kill(os.getpid(), signal.SIGINT)

    assert program("main", *SMOKE, "--train.steps", 4)[0] == 0
    good = (tmp_path / "ckpt/smoke/last.pth").read_bytes()
    monkeypatch.setattr(torch, "save", save)
    code, out, err = program("main", *SMOKE, "--resume", "--train.steps", 8)
    assert code == 130 and "Traceback" not in err and "stopped at step 4" in out  # what was saved, not what was reached
    assert (tmp_path / "ckpt/smoke/last.pth").read_bytes() == good
    assert not list((tmp_path / "ckpt").rglob("*.tmp"))


def test_an_existing_run_is_never_overwritten(program, tmp_path):
    assert program("main", *SMOKE)[0] == 0
    before = (tmp_path / "ckpt/smoke/last.pth").read_bytes()
    code, _, err = program("main", *SMOKE)
    assert code == 2 and "--resume" in err and "--out DIR" in err
    assert (tmp_path / "ckpt/smoke/last.pth").read_bytes() == before


def test_a_finished_run_can_be_extended(program, tmp_path):
    assert program("main", *SMOKE, "--train.steps", 4)[0] == 0
    code, _, err = program("main", *SMOKE, "--resume")
    assert code == 2 and "--train.steps" in err
    assert program("main", *SMOKE, "--resume", "--train.steps", 8)[0] == 0
    assert last(tmp_path / "ckpt/smoke")["step"] == 8


def test_on_resume_a_step_keeps_its_number_of_images_however_they_are_divided(program):
    """The epochs in metrics.csv count steps."""
    assert program("main", *SMOKE, "--train.steps", 4)[0] == 0
    resume = ("main", *SMOKE, "--resume", "--train.steps", 6)
    code, _, err = program(*resume, "--train.batch_size", 2)
    assert code == 2 and "2 images a step, but the run began with 4" in err
    assert program(*resume, "--train.batch_size", 2, "--train.accumulate", 2)[0] == 0


def test_a_refused_resume_changes_nothing(program, tmp_path):
    """A finished run, and one that has made more steps than are asked for, keep the settings that they had."""
    assert program("main", *SMOKE, "--train.steps", 4)[0] == 0
    before = {p.name: p.read_bytes() for p in (tmp_path / "ckpt/smoke").glob("*.*")}
    for flags in (("--train.lr", 7), ("--train.steps", 3, "--train.lr", 7)):
        code, _, err = program("main", *SMOKE, "--resume", *flags)
        assert code == 2 and "4 steps made" in err and "larger --train.steps" in err
        assert {p.name: p.read_bytes() for p in (tmp_path / "ckpt/smoke").glob("*.*")} == before


def test_who_cannot_resume_a_damaged_checkpoint_is_told_what_to_do(program, tmp_path):
    assert program("main", *SMOKE, "--train.steps", 4)[0] == 0
    os.truncate(tmp_path / "ckpt/smoke/last.pth", 5000)
    code, _, err = program("main", *SMOKE, "--resume")
    assert code == 2 and "damaged" in err and "--out DIR" in err and "ckpt/smoke/best.pth can still draw" in err
    (tmp_path / "ckpt/smoke/best.pth").unlink()
    assert "draw" not in program("main", *SMOKE, "--resume")[2]


def test_a_preset_is_refused_where_the_run_is_another(program):
    assert program("main", *SMOKE, "--train.steps", 4, "--out", "run")[0] == 0
    code, _, err = program("main", "--preset", "cifar10", "--out", "run", "--resume")
    assert code == 2 and "--preset cifar10: run/last.pth is a run of smoke" in err
    assert program("main", "--out", "run", "--resume", "--train.steps", 5)[0] == 0


def test_what_the_distance_needs_is_missed_before_the_training(program, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    distance = ("--train.distance_images", 4, "--train.distance_features", "inception")
    code, _, err = program("main", *SMOKE, *distance)
    assert code == 2 and "torch-fidelity" in err and not (tmp_path / "ckpt/smoke/config.json").exists()


def test_resume_refuses_another_network_and_other_data(program):
    assert program("main", *SMOKE, "--train.steps", 4)[0] == 0
    fixed = {"--model.channels": 16, "--diffusion.prediction": "v", "--data.size": 32, "--data.channels": 1}
    fixed |= {"--data.seed": 1, "--data.count": 20, "--data.val_fraction": 0.5}  # would train on what was held out
    fixed |= {"--train.seed": 1, "--train.val_images": 12}  # would compare losses of other pictures
    for flag, value in fixed.items():
        code, _, err = program("main", *SMOKE, "--resume", "--train.steps", 8, flag, value)
        assert code == 2 and f"{flag} cannot change" in err
    checkpointing = ("--model.grad_checkpoint", "true")  # changes no weight: the cure for a memory that is too small
    assert program("main", *SMOKE, "--resume", "--train.steps", 5, *checkpointing)[0] == 0
    assert checkpoint.load("ckpt/smoke/last.pth")[0].model.grad_checkpoint
    code, _, err = program("main", *SMOKE, "--resume", "--dry-run")
    assert code == 2 and "leave out --resume" in err
    code, _, err = program("main", *SMOKE, "--out", "nowhere", "--resume")
    assert code == 2 and "nothing to resume" in err
    code, _, err = program("main", *SMOKE, "--out", "new", "--train.steps", 4)
    os.remove("new/last.pth")
    code, _, err = program("main", *SMOKE, "--out", "new", "--resume", "--train.steps", 8)
    assert code == 2 and "start a new run with --out" in err  # "start without --resume" would be refused
    os.replace("new/best.pth", "new/last.pth")
    code, _, err = program("main", *SMOKE, "--out", "new", "--resume", "--train.steps", 8)
    assert code == 2 and "cannot be resumed" in err


def test_a_resumed_run_shows_at_once_what_its_checkpoint_holds():
    """The one before may have been killed between the checkpoint and the table."""
    small().fit()
    table = Path("run/metrics.csv")
    before = table.read_text()
    table.write_text("of another time")
    t = small()
    resume.go_on(t, last(t.folder))
    t.open_folder()
    assert table.read_text() == before


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train_greys", [0.0]),
        ("train_greys", torch.ones(6, dtype=torch.bool)),
        ("train_greys", torch.full((6,), math.nan)),
        ("train_images", torch.zeros(3)),
        ("skipped", 10**30),
    ],
)
def test_resume_refuses_what_is_damaged_in_one_line(key, value):
    t = small()
    t.save()
    with pytest.raises(UserError, match=r"last\.pth"):
        resume.go_on(small(), last(t.folder) | {key: value})


@pytest.mark.parametrize("lost", ["ema_updates", "rows", "best", "sums", "skipped", "streak"])
def test_resume_refuses_a_checkpoint_without_a_part_of_it(lost):
    t = small()
    t.save()
    state = last(t.folder)
    del state[lost]
    with pytest.raises(UserError, match=rf"last\.pth: .* missing or damaged \(KeyError: '{lost}'\)"):
        resume.go_on(small(), state)


def test_resume_refuses_an_optimiser_of_other_weights():
    t = small()
    t.train_step()
    t.save()
    for damage in ("shape", "number"):
        state = last(t.folder)
        if damage == "shape":
            state["optimizer"]["state"][0]["exp_avg"] = torch.zeros(3)
        else:
            state["optimizer"]["param_groups"][0]["params"].pop()
        with pytest.raises(UserError, match=r"last\.pth: what resuming needs is missing or damaged \(ValueError"):
            resume.go_on(small(), state)


def test_resume_refuses_classes_that_changed_places():
    """As a renamed folder makes them do: every label would mean another class."""
    t = small()
    t.save()
    state = last(t.folder)
    state["classes"] = state["classes"][::-1]
    with pytest.raises(UserError, match="the data has changed: classes stripes, zigzag"):
        resume.go_on(small(), state)


def test_resume_refuses_other_pictures_but_no_other_rounding():
    """As many, under the same names; a newer decoder may round otherwise."""
    t = small()
    t.save()
    for exchanged in (False, True):
        other = small()
        pixels, one = other.images.pixels ^ 1, other.batches.indices[-1]  # every last bit is another
        pixels[one] = 255 - pixels[one] if exchanged else pixels[one]
        other.images = replace(other.images, pixels=pixels)
        if exchanged:
            with pytest.raises(UserError, match=r"other pictures than when .*last\.pth was saved; bring them back"):
                resume.go_on(other, last(t.folder))
            older = last(t.folder)
            del older["train_greys"]
            resume.go_on(other, older)  # which cannot know
        else:
            resume.go_on(other, last(t.folder))


# ---------------------------------------------------------------- NaN


def poison(monkeypatch, when):
    real = Batches.__call__

    def call(self, k):
        x, y = real(self, k)
        return (x * math.nan if when(k) else x), y

    monkeypatch.setattr(Batches, "__call__", call)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_one_poisoned_batch_is_skipped_and_counted(monkeypatch, value):
    t = small(**{"train.steps": 8, "train.eval_every": 4})
    t.train_step()
    t.train_step()
    weights, shadow = ({k: v.clone() for k, v in m.state_dict().items()} for m in (t.model, t.ema.model))
    moments = {k: v["exp_avg"].clone() for k, v in t.optimizer.state_dict()["state"].items()}
    real = t.batches
    t.batches = lambda k: (real(k)[0] * value, real(k)[1])
    t.train_step()
    t.batches = real
    assert all(torch.equal(v, weights[k]) for k, v in t.model.state_dict().items())
    assert all(torch.equal(v, shadow[k]) for k, v in t.ema.model.state_dict().items())
    for k, v in t.optimizer.state_dict()["state"].items():
        assert torch.equal(v["exp_avg"], moments[k]) and v["step"] == 2
    assert t.skipped == 1 and t.streak == 1
    assert t.sums[2] == 2  # the mean is over the steps that were made
    t.fit()
    assert t.streak == 0 and t.rows[-1]["skipped"] == 1
    assert all(math.isfinite(v) for r in t.rows for v in r.values())
    assert all(torch.isfinite(v).all() for v in last(t.folder)["model"].values())


def test_a_row_whose_steps_were_all_skipped_has_no_training_loss(monkeypatch):
    poison(monkeypatch, lambda k: k >= 4)
    t = small(**{"train.steps": 8, "train.eval_every": 4})
    t.fit()
    good, bad = t.rows
    assert good["train_loss"] > 0 and good["grad_norm"] > 0 and bad["skipped"] == 4
    assert math.isnan(bad["train_loss"]) and math.isnan(bad["grad_norm"])  # 0 would be perfection
    assert bad["val_loss"] == good["val_loss"]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_gradient_that_is_infinite_and_no_nan_is_skipped_too(precision):
    t = small(precision=precision)
    t.model.head.weight.register_hook(lambda grad: torch.full_like(grad, math.inf))
    before = {k: v.clone() for k, v in t.model.state_dict().items()}
    t.train_step()
    assert t.skipped == 1 and t.sums.tolist() == [0, 0, 0]
    assert all(torch.equal(v, before[k]) for k, v in t.model.state_dict().items())


def test_a_training_that_is_always_poisoned_stops_and_names_the_last_good_checkpoint(program, monkeypatch, tmp_path):
    poison(monkeypatch, lambda k: k >= 4)
    code, _, err = program("main", *SMOKE, "--train.steps", 100, "--train.max_skips", 7, "--train.eval_every", 4)
    assert code == 2 and err.count("\n") == 1
    assert "10 steps in a row" in err or "in a row had a gradient that is not finite" in err
    assert "ckpt/smoke/last.pth" in err
    assert all(torch.isfinite(v).all() for v in last(tmp_path / "ckpt/smoke")["ema"].values())


# ---------------------------------------------------------------- the run folder


def test_two_processes_cannot_train_in_one_folder(program):
    with locked("ckpt/smoke"):
        code, _, err = program("main", *SMOKE)
    assert code == 2 and "another process is training here" in err
    assert program("main", *SMOKE)[0] == 0


def test_leftovers_of_a_killed_process_are_removed(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/.last.pth.abc.tmp").write_text("half")
    (tmp_path / "run/another").mkdir()
    (tmp_path / "run/another/.last.pth.abc.tmp").write_text("of a run that may be saving now")
    small().fit()
    assert [p.parent.name for p in (tmp_path / "run").rglob("*.tmp")] == ["another"]


def test_every_process_knows_what_the_main_one_saved():
    t = small(group=Processes(1, 1, torch.device("cpu")))
    t.fit()
    assert t.saved == 4 and not [*t.folder.glob("*.pth"), *t.folder.glob("samples/s*")]


def test_a_full_disk_stops_with_one_line_and_the_last_checkpoint_still_loads(program, monkeypatch, tmp_path):
    real = torch.save

    def full(state, path):
        if state["step"] > 4:
            raise RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0")
        real(state, path)

    monkeypatch.setattr(torch, "save", full)
    code, _, err = program("main", *SMOKE)
    assert code == 2 and err.count("\n") == 1 and "cannot write" in err and "untouched" in err
    assert last(tmp_path / "ckpt/smoke")["step"] == 4


def test_a_run_folder_that_vanishes_stops_with_one_line(program, monkeypatch):
    import shutil

    real = examine.validate

    def validate(trainer):
        if trainer.step == 8:
            shutil.rmtree(trainer.folder)
        return real(trainer)

    monkeypatch.setattr(examine, "validate", validate)
    code, _, err = program("main", *SMOKE)
    assert code == 2 and err.count("\n") == 1 and "cannot write ckpt/smoke" in err


def test_the_best_checkpoint_is_the_one_with_the_lowest_validation_loss(monkeypatch):
    t = small(**{"train.steps": 8})
    losses = iter([0.5, 0.3, 0.3, 0.6])  # of two that are equal, the first
    monkeypatch.setattr(examine, "validate", lambda _: {"val_loss": next(losses), **dict.fromkeys(views.QUARTERS, 1.0)})
    t.fit()
    assert checkpoint.load(t.folder / "best.pth")[1]["step"] == 4
    assert t.best == 0.3 and last(t.folder)["step"] == 8


def test_best_is_on_the_disk_before_the_checkpoint_that_says_so(monkeypatch):
    """Killed between the two, a resumed run would think that it had been saved."""
    t, written, real = small(**{"train.steps": 2}), [], checkpoint.save
    monkeypatch.setattr(
        checkpoint, "save", lambda path, *a, **more: written.append(path.name) or real(path, *a, **more)
    )
    t.fit()
    assert written == ["best.pth", "last.pth"]


def test_batch_sizes_that_processes_cannot_share_are_refused():
    from dataclasses import replace

    config = override(PRESETS["smoke"], {"train.batch_size": 3})
    images = sources.load("textiles", size=(16, 16), channels=3, count=8)
    with pytest.raises(UserError, match="not a multiple of the 2 processes"):
        Trainer(config, images, [0], [1], "x", replace(start("cpu"), world=2))


def test_the_config_survives_json():
    for config in PRESETS.values():
        assert from_dict(json.loads(json.dumps(to_dict(config)))) == config


def test_the_distance_of_samples_and_data_is_measured_only_when_asked_for(program, tmp_path):
    from evaluation import compare

    flags = (*SMOKE, "--data.count", "40", "--train.distance_images", "12", "--train.distance_features", "pixels")
    assert program("main", *flags)[0] == 0
    header, first, second = (line.split(",") for line in (tmp_path / "ckpt/smoke/metrics.csv").read_text().splitlines())
    assert header[-2:] == ["frechet_distance_pixels", "mmd2_pixels"] and len(first) == len(second) == len(header)
    state = last(tmp_path / "ckpt/smoke")
    assert float(second[-2]) == state["rows"][1]["frechet_distance_pixels"] > 0
    assert pictures.load_png(tmp_path / "ckpt/smoke/loss.png").shape[-1] > 1500  # three panels

    t = small(**{"data.count": 40, "train.distance_images": 12, "train.distance_features": "pixels"})
    checkpoint.load_weights(t.ema.model, state["ema"], "last.pth")
    drawn = examine.sample(t, 12)[0]
    evenly = [int(i * len(t.batches.indices) / 12) for i in range(12)]  # the first 12 might be of one class
    real = torch.from_numpy(t.images.pixels[t.batches.indices[evenly]])
    assert examine.distance(t)["mmd2_pixels"] == pytest.approx(
        compare.compare(drawn, real, t.extract)["mmd2_pixels"], rel=1e-3
    )
    assert examine.distance(small()) == {}


def test_processes_share_the_pictures_of_the_distance(monkeypatch):
    monkeypatch.setattr(trainer_module, "DistributedDataParallel", lambda net, device_ids: net)
    flags = {"data.count": 40, "train.distance_images": 10, "train.distance_features": "pixels"}
    whole, shares = examine.distance(small(**flags)), []
    monkeypatch.setattr(Processes, "gather", lambda self, drawn: shares.append(drawn) or list(shares))
    for rank in (0, 1):
        found = examine.distance(small(group=Processes(rank, 2, torch.device("cpu")), **flags))
    assert [sum(map(len, share)) for share in shares] == [5, 5]
    name = "frechet_distance_pixels"  # the other one draws subsets, and the order is another
    assert found[name] == pytest.approx(whole[name], rel=1e-6)


def test_the_grid_of_the_data_is_a_full_square(monkeypatch):
    shown = []
    monkeypatch.setattr(views.pictures, "grid", lambda images: shown.append(len(images)))
    monkeypatch.setattr(views, "put", lambda *_: None)
    for n in (5, 100):
        views.save_data(Path(), torch.zeros(n, 3, 4, 4, dtype=torch.uint8), (4, 4))
    assert shown == [4, 36]


def test_the_film_of_the_strips_has_the_size_of_the_newest(tmp_path):
    """A run that went on with another --sample.steps has strips of two sizes."""
    (tmp_path / "samples").mkdir()
    for i, width in enumerate((4, 8, 8)):
        strip = torch.full((3, 4, width), 80 * i, dtype=torch.uint8)
        pictures.save_png(tmp_path / f"samples/strip_{i:07d}.png", strip)
    views.animate_strips(tmp_path)
    with Image.open(tmp_path / "samples/strips.gif") as film:
        assert film.size == (8, 4) and film.n_frames == 2


def test_without_strips_there_is_no_film(tmp_path):
    (tmp_path / "samples").mkdir()  # their owner tidied them away
    views.animate_strips(tmp_path)
    assert not list((tmp_path / "samples").iterdir())


BAR = SimpleNamespace(set_postfix_str=lambda *_, **__: None)


def test_the_training_stops_at_max_skips_and_names_the_step_that_was_saved():
    t = small(**{"train.max_skips": 10})
    t.train_step()
    t.save()
    t.train_step()
    t.streak.fill_(9)
    t._look(BAR)
    t.streak.fill_(10)
    with pytest.raises(UserError, match=r"^10 steps in a row .*last.pth \(step 1\)"):
        t._look(BAR)


def test_an_infinite_validation_loss_ends_the_training(monkeypatch):
    t, found = small(), {"val_loss": math.inf, **dict.fromkeys(views.QUARTERS, 1.0)}
    monkeypatch.setattr(examine, "validate", lambda _: found)
    with pytest.raises(UserError, match=r"^the validation loss is inf"):
        t.evaluate()


def test_validation_does_not_depend_on_the_batch_size():
    """Image i has its own noise, whatever batch it is in."""
    whole, parts = (examine.validate(small(**{"train.batch_size": size, "train.val_images": 8})) for size in (8, 2))
    assert whole == pytest.approx(parts, rel=1e-4)


def test_when_stopped_only_the_first_process_saves():
    t = small(group=Processes(1, 1, torch.device("cpu")))

    def step():
        raise trainer_module.Interrupted

    t.train_step = step
    with pytest.raises(KeyboardInterrupt):
        t.fit()
    assert not (t.folder / "last.pth").exists()


def test_a_run_goes_on_in_another_precision_and_knows_what_is_saved():
    t = small()
    t.train_step()
    t.save()
    _, state = checkpoint.load(t.folder / "last.pth")
    again = small(precision="fp16")
    resume.go_on(again, state)
    assert again.step == again.saved == 1


def test_one_picture_that_was_exchanged_is_noticed():
    t = small()
    greys = resume.greys(t)
    greys[0] += 5
    state = {"train_images": len(t.batches.indices), "classes": t.classes, "train_greys": greys}
    with pytest.raises(UserError, match="other pictures"):
        resume.refuse_other_data(t, state, "last.pth")


def test_the_bar_shows_the_mean_loss_and_where_it_is_and_only_that_of_the_first_process(monkeypatch):
    t, said = small(), []
    t.step, t.clock_step, t.clock = 3, 1, 100.0
    t.sums.copy_(torch.tensor([6.0, 0.0, 4.0]))
    monkeypatch.setattr(trainer_module.time, "perf_counter", lambda: 100.5)  # 2 steps of 4 images in half a second
    t._look(SimpleNamespace(set_postfix_str=lambda text, refresh: said.append(text)))
    assert said[0] == "loss 1.5000, lr 1.0e-03, 16 images/s"
    t.sums.zero_()
    t._look(SimpleNamespace(set_postfix_str=lambda text, refresh: said.append(text)))
    assert said[1].startswith("loss nan, ")  # no step since: all were skipped
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with t._bar() as bar:
        assert (bar.n, bar.total) == (3, t.steps) and not bar.disable
    t.group = replace(t.group, rank=1)
    assert t._bar().disable


def test_a_distance_that_is_not_positive_is_drawn_too(monkeypatch, tmp_path):
    """The kernel distance is unbiased: of two sets that are alike it is as often below 0."""
    kept = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: kept.append(self))
    row = dict.fromkeys(views.COLUMNS, 1.0) | {"train_loss": math.nan}  # which is no reason for another scale
    views.plot(tmp_path / "loss.png", [{**row, "step": 1, "kid": 0.1}, {**row, "step": 2, "kid": -0.1}])
    views.plot(tmp_path / "loss.png", [{**row, "step": 1, "kid": 0.1}, {**row, "step": 2, "kid": 0.2}])
    assert [[panel.get_yscale() for panel in figure.axes] for figure in kept] == [
        ["log", "log", "linear"], ["log", "log", "log"],
    ]  # fmt: skip


@pytest.mark.parametrize(("steps", "said"), [(5, True), (6, False)])
def test_a_warm_up_that_takes_all_steps_is_warned_of(program, steps, said):
    code, _, err = program("main", *SMOKE, "--train.warmup_steps", 5, "--train.steps", steps)
    assert code == 0 and ("--train.warmup_steps 5: it never reaches its learning rate" in err) == said


def test_after_a_training_signals_do_again_what_they_did_before():
    before, mine = signal.getsignal(signal.SIGTERM), lambda *_: None
    signal.signal(signal.SIGTERM, mine)
    try:
        with small()._signals():
            assert signal.getsignal(signal.SIGTERM) is not mine
        assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        signal.signal(signal.SIGTERM, before)
