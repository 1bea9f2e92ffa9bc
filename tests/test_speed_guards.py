"""Speed without a clock: nothing in the step waits, nothing is computed twice, nothing piles up."""

import gc
import os
import platform
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from config import PRESETS, override
from dataset import sources
from diffusion.process import GaussianDiffusion
from diffusion.samplers import ddim
from diffusion.schedule import linear
from diffusion.steps import spaced
from models.unet import UNet
from processes import start
from trainer import Trainer


class Operations(TorchDispatchMode):
    """Counts every operation that reaches PyTorch's kernels, by name."""

    def __init__(self):
        super().__init__()
        self.count = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        self.count[name] = self.count.get(name, 0) + 1
        return function(*args, **(kwargs or {}))

    @property
    def total(self):
        return sum(self.count.values())


@pytest.fixture
def loop(tmp_path, monkeypatch):
    """A Trainer on a few textiles that has made two steps, so that all lazy state is there."""
    monkeypatch.chdir(tmp_path)
    config = override(PRESETS["smoke"], {"train.steps": 1000})
    images = sources.load("textiles", size=config.data.size, channels=3, count=config.data.count)
    train, val = sources.split(images, config.data.val_fraction, 0)
    trainer = Trainer(config, images, train, val, tmp_path, start("cpu"))
    trainer.train_step(), trainer.train_step()
    return trainer


# ---------------------------------------------------------------- training


def test_the_step_never_reads_a_tensor_of_the_device(loop, monkeypatch):
    """On a GPU each of these makes the host wait until all queued work is done."""

    def forbidden(name):
        def call(*_args, **_kwargs):
            raise AssertionError(f"Tensor.{name} in the training step")

        return call

    for name in ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__", "__index__"):
        monkeypatch.setattr(torch.Tensor, name, forbidden(name))
    loop.train_step()


def test_the_step_has_no_operation_whose_shape_depends_on_values(loop):
    """x[mask], nonzero() and unique() wait for the device as .item() does, only hidden."""
    with Operations() as operations:
        loop.train_step()
    waits = {"nonzero", "masked_select", "_unique2", "unique_dim", "_local_scalar_dense", "is_nonzero", "equal"}
    assert not waits & operations.count.keys()


def test_every_step_is_the_same_work(loop):
    counts = []
    for _ in range(3):
        with Operations() as operations:
            loop.train_step()
        counts.append(operations.count)
    assert counts[0] == counts[1] == counts[2]


def test_the_optimiser_and_the_average_do_not_grow_with_the_number_of_layers(loop):
    """One fused or foreach call each, not one for each of the parameters."""
    with Operations() as operations:
        loop.train_step()
    assert operations.count["_fused_adam_"] == 1
    average = {name: n for name, n in operations.count.items() if name in ("_foreach_mul", "_foreach_mul_")}
    assert average["_foreach_mul"] == 1
    assert average["_foreach_mul_"] == 2  # the clipping is the other one
    assert not {"lerp_", "lerp"} & operations.count.keys()
    parameters = len(list(loop.model.parameters()))
    assert operations.total < 15 * parameters  # it is 11; a loop over the parameters adds 1 or more for each operation


def test_fifty_steps_leave_no_tensor_behind(loop):
    def alive():
        gc.collect()
        return sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects())

    gc.collect()
    gc.freeze()  # what is there by now is not looked at again
    try:
        loop.train_step()
        before = alive()
        for _ in range(50):
            loop.train_step()
        assert alive() <= before
    finally:
        gc.unfreeze()


FAULTS = """
import resource, cli, torch

def faults(argv):
    net = torch.nn.Sequential(*[torch.nn.Conv2d(32, 32, 3, padding=1) for _ in range(8)])
    x = torch.randn(8, 32, 64, 64)
    for step in range(20):
        if step == 8:  # the heap has all but settled
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        net(x).square().mean().backward()
        net.zero_grad()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

cli.run(faults, [])
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc keeps memory on request")
def test_a_program_does_not_fetch_fresh_memory_from_the_system_in_every_step():
    root = Path(__file__).resolve().parent.parent
    found = subprocess.run([sys.executable, "-c", FAULTS], cwd=root, capture_output=True, text=True, check=True)
    assert int(found.stdout) < 5000  # pages in twelve steps; each tensor fills 1,024 of them


def test_the_step_is_compiled_once(loop):
    """torch.compile with a backend that only counts: new batches, timesteps and weights ask for no new graph."""
    graphs = []

    def count(graph, _inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    loop.net = torch.compile(loop.model, backend=count)
    loop.train_step()
    first = len(graphs)
    assert first == 1  # one graph without a break
    for _ in range(5):
        loop.train_step()
    assert len(graphs) == first
    torch._dynamo.reset()


# ---------------------------------------------------------------- sampling


class Counted(torch.nn.Module):
    """A network that counts how often it is called, and for how many images."""

    def __init__(self, network):
        super().__init__()
        self.network, self.batches, self.null_class = network, [], network.null_class

    def forward(self, x, t, y=None):
        self.batches.append(len(x))
        return self.network(x, t, y)


@pytest.mark.parametrize(("guidance", "images"), [(1.0, 2), (0.0, 2), (3.0, 4)])
def test_a_sampling_step_is_one_call_of_the_network(guidance, images):
    """Guidance sends both halves through together: twice the images, not twice the calls."""
    config = PRESETS["smoke"]
    network = Counted(UNet(config.model, 3, config.data.size).eval())
    diffusion = GaussianDiffusion(linear(1000))
    denoise = diffusion.denoiser(network, torch.tensor([1, 2]), guidance=guidance)
    list(ddim(denoise, diffusion.schedule, torch.randn(2, 3, 16, 16), timesteps=spaced(1000, 5)))
    assert network.batches == [images] * 5


def test_drawing_compiles_the_network_once(program, lively, monkeypatch):
    """However many steps and batches, the last one filled up with pictures that nobody asked for; nothing changes."""
    graphs, compile_ = [], torch.compile

    def count(graph, _inputs):
        graphs.append(graph)
        return graph.forward

    draw = ("generate", "ddim", "--ckpt", lively, "-n", 5, "--batch-size", 2, "--steps", 4, "--out")
    assert program(*draw, "plain")[0] == 0
    monkeypatch.setattr(torch, "compile", lambda net: compile_(net, backend=count))
    torch._dynamo.reset()
    code, out, _ = program(*draw, "compiled", "--compile")
    torch._dynamo.reset()
    assert code == 0 and "fp32, compiled" in out and len(graphs) == 1
    for i in range(5):
        assert Path(f"compiled/{i:05d}.png").read_bytes() == Path(f"plain/{i:05d}.png").read_bytes()


def test_more_pictures_do_not_wait_for_the_disk_more_often(program, lively, monkeypatch):
    """A flush takes milliseconds, and there may be 50,000 pictures."""
    waits, fsync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: waits.append(file) or fsync(file))

    def flushes(n):
        waits.clear()
        draw = ("generate", "ddim", "--ckpt", lively, "-n", n, "--batch-size", 4, "--steps", 1, "--out", f"of{n}")
        assert program(*draw)[0] == 0
        return len(waits)

    assert flushes(8) == flushes(2) > 0


def test_sampling_keeps_no_graph_and_no_stage():
    """The generator forgets a stage when its caller does: memory does not grow with the number of steps."""
    config = PRESETS["smoke"]
    network = UNet(config.model, 3, config.data.size).eval()
    diffusion = GaussianDiffusion(linear(1000))
    noise, levels = torch.randn(1, 3, 16, 16), spaced(1000, 10)
    guesses = []
    for step in ddim(diffusion.denoiser(network), diffusion.schedule, noise, timesteps=levels):
        assert not step.x.requires_grad and not step.x0.requires_grad
        guesses.append(weakref.ref(step.x0))
        assert sum(guess() is not None for guess in guesses) <= 2  # this stage, and at most the one before
