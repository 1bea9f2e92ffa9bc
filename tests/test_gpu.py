"""On a GPU, where there is one: that the programs run there.  All other tests hide it, as they compare bits."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import GPUS

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.skipif(shutil.which("nvidia-smi") is None or GPUS == "", reason="needs a GPU")


def there(folder, *argv):
    """What Python prints, run with these arguments in this folder, with the GPUs that there are."""
    env = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    env |= {"PYTHONPATH": str(ROOT)} | ({"CUDA_VISIBLE_DEVICES": GPUS} if GPUS else {})
    done = subprocess.run([sys.executable, *argv], cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_pictures_may_be_on_another_device_than_the_tables(tmp_path):
    script = """
import torch
from diffusion.process import PREDICTIONS, GaussianDiffusion, q_posterior
from diffusion.schedule import cosine
x, t, schedule = torch.randn(4, 3, 2, 2).cuda(), torch.full((4,), 2).cuda(), cosine(50)
for prediction in PREDICTIONS:
    d = GaussianDiffusion(schedule, prediction, 5.0)
    loss, x0 = d.loss(lambda x, t, y: x, x), d.denoiser(lambda x, t, y: x)(x, 3)[0]
    print(*(z.device == x.device for z in (loss, x0, q_posterior(schedule, x, x, t, t - 1)[0])))
"""
    assert there(tmp_path, "-c", script) == "True True True\n" * 3


@pytest.mark.parametrize("flags", [(), ("--precision", "fp16"), ("--precision", "fp32"), ("--compile",)], ids=str)
def test_a_network_is_trained_and_goes_on(tmp_path, flags):
    command = (ROOT / "main.py", "--preset", "smoke", *flags)
    out = there(tmp_path, *command, "--train.steps", "4")
    assert "\ndevice    cuda:0, " in out and "\nstep       4/4 " in out
    assert "\nstep       8/8 " in there(tmp_path, *command, "--resume", "--train.steps", "8")


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpmpp", "heun", "pc", "ode"])
def test_the_shipped_checkpoint_draws_there_what_it_draws_here(tmp_path, sampler):
    from dataset import pictures

    argv = (ROOT / "generate.py", sampler, "--ckpt", ROOT / "assets/textiles.pth", "-n", "2", "--steps", "10")
    there(tmp_path, *argv, "--precision", "fp32", "--out", "gpu")
    there(tmp_path, *argv, "--device", "cpu", "--out", "cpu")
    one, other = (pictures.load_png(tmp_path / where / "grid.png").float() for where in ("gpu", "cpu"))
    assert (one - other).abs().mean() < 4  # grey levels: TF32 rounds


@pytest.mark.parametrize(
    "argv",
    [
        ("evaluate.py", "fid", "-n", "8", "--features", "random"),
        ("evaluate.py", "bpd", "-n", "2"),
        ("edit.py", "inpaint", "--steps", "4"),
        ("explore.py", "denoise", "--steps", "4"),
    ],
    ids=lambda argv: " ".join(argv[:2]),
)
def test_the_other_programs_run_there(tmp_path, argv):
    there(tmp_path, ROOT / argv[0], *argv[1:], "--device", "cuda", "--ckpt", ROOT / "assets/textiles.pth")
