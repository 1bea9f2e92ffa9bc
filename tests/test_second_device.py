"""What the programs do on a GPU, as far as a machine without one can tell: nothing is left behind on the CPU."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_explore import TINY

from dataset import pictures
from diffusion.samplers import SAMPLERS
from models import checkpoint

TESTS = Path(__file__).resolve().parent
if not hasattr(torch.utils.backend_registration, "_setup_privateuseone_for_python_backend"):
    pytest.skip("this PyTorch cannot be given a device written in Python", allow_module_level=True)

SLOW = {"samplers", "steps"}  # lessons that walk as others do, often
DRAW = [
    *(f"generate {name} -n 2 --steps 3 --out NAME/{name}" for name in SAMPLERS if name != "ode"),
    "generate ode -n 2 --steps 2 --tol 1 --out NAME/ode",
    "edit inpaint -n 2 --steps 3 --resamples 2 --out NAME/inpaint",
    "edit img2img -n 2 --steps 3 --level 20 --out NAME/img2img",
    "edit invert -n 2 --steps 3 --refine 1 --out NAME/invert",
    *(" ".join(["explore", name, *flags, "--out NAME-lessons"]) for name, flags in TINY.items() if name not in SLOW),
]
MEASURE = [
    "evaluate fid -n 8 --features random --steps 2 --out NAME-fid",
    "evaluate kid -n 8 --features random --steps 2 --out NAME-kid",
    "evaluate bpd -n 2 --levels 3 --out NAME-bpd",
    "evaluate loglik -n 2 --tol 5 --out NAME-loglik",
    "evaluate nearest -n 8 --steps 2 --out NAME-nearest",
]


def python(*arguments):
    """Run Python with these arguments in a fresh process, which alone can have the device; what it printed."""
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def on_both(program, commands):
    """Run the commands here and on the second device, with NAME as "here" and "there"."""
    python(TESTS / "second_device.py", *(c.replace("NAME", "there") for c in commands))
    for command in commands:
        name, *argv = command.replace("NAME", "here").split()
        assert program(name, *argv)[0] == 0


def same_pictures(here, there):
    """The same PNGs in both folders, to one grey level."""
    names = {path.relative_to(here) for path in here.rglob("*.png")}
    assert names == {path.relative_to(there) for path in there.rglob("*.png")} and names
    for name in names:
        a, b = (pictures.load_png(folder / name).int() for folder in (here, there))
        assert (a - b).abs().max() <= 1, name


def test_training_on_another_device_is_the_same_training(program, tmp_path):
    """Train, validate, draw, measure, save, resume: the losses, the weights and the pictures of the CPU."""
    quick = "main --preset smoke --train.steps 4 --sample.n 2 --sample.guidance 2 --diffusion.process"
    whole = f"{quick} edm --out NAME-edm"
    first = f"{quick} learned_variance --train.accumulate 2 --train.batch_size 2 --train.distance_images 8 --out NAME"
    on_both(program, [whole, first, "main --resume --train.steps 6 --out NAME"])
    for run, steps in (("-edm", ["4"]), ("", ["4", "6"])):
        folders = tmp_path / f"here{run}", tmp_path / f"there{run}"
        here, there = (list(csv.DictReader((folder / "metrics.csv").read_text().splitlines())) for folder in folders)
        assert [row["step"] for row in there] == steps
        for mine, theirs in zip(here, there):
            for name in mine.keys() - {"images_per_s"}:
                assert float(theirs[name]) == pytest.approx(float(mine[name]), rel=1e-3, abs=1e-6), name
        (_, mine), (_, theirs) = (checkpoint.load(folder / "last.pth") for folder in folders)
        for name, weight in mine["ema"].items():
            torch.testing.assert_close(theirs["ema"][name], weight, rtol=1e-3, atol=1e-5)
        same_pictures(*(folder / "samples" for folder in folders))


def test_every_program_on_another_device_does_the_same(program, tmp_path, lively):
    on_both(program, [f"{command} --ckpt {lively}" for command in DRAW + MEASURE])
    same_pictures(tmp_path / "here", tmp_path / "there")
    for command in MEASURE:
        name = command.split()[1]
        mine, theirs = (json.loads((tmp_path / f"{side}-{name}/{name}.json").read_text()) for side in ("here", "there"))
        assert mine["figures"] == pytest.approx(theirs["figures"], rel=1e-3, abs=1e-6), name
        assert (mine["protocol"]["device"], theirs["protocol"]["device"]) == ("cpu", "elsewhere:0")


COPIES = f"""
import sys
sys.path[:0] = [{str(TESTS.parent)!r}, {str(TESTS)!r}]
from second_device import DEVICE, copies
import examine
from config import PRESETS, override
from dataset import sources
from processes import Processes
from trainer import Trainer

config = override(PRESETS["smoke"], {{"model.dropout": 0.1, "train.accumulate": 2, "sample.eta": 1.0}})
images = sources.load("textiles", size=config.data.size, channels=3, count=8)
trainer = Trainer(config, images, range(6), range(6, 8), "unused", Processes(0, 1, DEVICE), "fp32")
trainer.train_step(), trainer.train_step()
copies.clear()
trainer.train_step()
print(copies)
walk = examine.walk(trainer, range(2))
next(walk)
copies.clear()
print(len(list(walk)), copies)
copies.clear()
trainer.sums.tolist()
print(copies)
"""


def test_neither_a_training_step_nor_a_sampling_step_waits_for_the_device():
    """A step sends which images it takes and which to mirror, for each of two batches, from pinned memory; with eta 1
    the fresh noise of a sampling step, which the last one has none of.
    """
    step, walk, read = python("-c", COPIES).splitlines()
    assert step == str(["to device, pinned"] * 4)
    assert walk == f"4 {['to device, pinned'] * 3}"
    assert read == "['to host']"  # so it would be seen
