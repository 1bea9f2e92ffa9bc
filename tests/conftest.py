"""Shared fixtures: a small trained run, and the programs called as a user calls them."""

import os
import signal

import pytest
import torch

import cli
import edit
import evaluate
import explore
import generate
import main
import minimal
from config import override
from models import checkpoint

GPUS = os.environ.get("CUDA_VISIBLE_DEVICES")  # test_gpu.py asks for them
os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before torch looks: the tests compare bits, the CPU's
os.environ["no_proxy"] = os.environ["NO_PROXY"] = "*"  # the page of explore.py is on this machine
os.environ["COLUMNS"] = "80"  # a narrower --help breaks its lines elsewhere
for left in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):  # by a cluster's launcher
    os.environ.pop(left, None)
torch.set_num_threads(1)  # tiny tensors: threads only get in each other's way
signal.signal(signal.SIGINT, signal.default_int_handler)  # a script's background jobs begin with Ctrl-C ignored


@pytest.fixture
def program(monkeypatch, tmp_path, capsys):
    """program("main", "--preset", "smoke") -> (exit code, stdout, stderr), run in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    programs = {module.__name__: module.main for module in (main, generate, explore, evaluate, edit, minimal)}

    def call(name, *argv):
        capsys.readouterr()
        try:
            code = cli.run(programs[name], [str(a) for a in argv])
        except SystemExit as stop:  # --help
            code = stop.code
        out = capsys.readouterr()
        return code, out.out, out.err

    return call


@pytest.fixture
def whole_equals_halves(program, tmp_path):
    """whole_equals_halves(*flags of a smoke run): stopped and resumed, it ends in the same weights; its Config."""

    def check(*flags):
        assert program("main", *flags, "--out", "ckpt/whole")[0] == 0
        assert program("main", *flags, "--train.steps", 4, "--out", "ckpt/halves")[0] == 0
        assert program("main", "--preset", "smoke", "--resume", "--train.steps", 8, "--out", "ckpt/halves")[0] == 0
        found, whole = checkpoint.load(tmp_path / "ckpt/whole/last.pth")
        _, halves = checkpoint.load(tmp_path / "ckpt/halves/last.pth")
        for name, weight in whole["model"].items():
            assert torch.equal(weight, halves["model"][name]), name
        return found

    return check


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory):
    """The run folder of one finished smoke training."""
    folder = tmp_path_factory.mktemp("run") / "smoke"
    assert cli.run(main.main, ["--preset", "smoke", "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="session")
def lively(run_folder):
    """A checkpoint that hears all it is told, twelve classes among it, and samples with eta 0.7 and guidance 3."""
    config, state = checkpoint.load(run_folder / "best.pth")
    config = override(config, {"model.dropout": 0.5, "sample.eta": 0.7, "sample.guidance": 3.0})
    generator = torch.Generator().manual_seed(0)
    weights = {
        key: {name: w + 0.1 * torch.randn(w.shape, generator=generator) for name, w in state[key].items()}
        for key in ("model", "ema")
    }
    path = run_folder.parent / "lively.pth"
    checkpoint.save(path, config, **weights, step=8, classes=state["classes"])
    return path
