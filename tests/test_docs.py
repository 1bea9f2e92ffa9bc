"""What docs/ tells a reader to type is typed here: every command of the exercises runs, the sampler shown is right."""

import re
import shlex
import shutil
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from oracles import gaussian, normal
from PIL import Image
from test_explore import TINY
from torch.testing import assert_close

import explore
from diffusion.process import GaussianDiffusion
from diffusion.samplers import SAMPLERS, ddim
from diffusion.schedule import cosine
from diffusion.steps import last, spaced

DOCS = Path(__file__).resolve().parent.parent / "docs"
EXERCISES = (DOCS / "exercises.md").read_text()
SHOWN = re.sub(r"^```python\n.*?^```$", "", EXERCISES, flags=re.M | re.S)
COMMANDS = re.findall(r"(?:^|(?<=`))python [^`\n]+", SHOWN, re.M)  # in blocks and between backticks
CODE = re.findall(r"^```python\n(.*?)^```$", EXERCISES, re.M | re.S)

# appended, so that a command is over soon; the last value of a flag counts
SHORT = {
    "main": (
        "--train.steps 2 --train.eval_every 1 --train.batch_size 4 --train.val_images 4 --data.count 40 --data.size 16 "
        "--model.channels 8 --model.channel_mults 1,2 --sample.steps 2 --sample.n 1 --device cpu"
    ),
    "generate": "-n 2 --batch-size 2 --steps 2 --device cpu",
    "edit": "-n 2 --steps 2 --device cpu",
    **{name: " ".join(options) for name, options in TINY.items()},
    "attention": "--places 2 --steps 2 --level 20",
}


@pytest.fixture
def world(tmp_path, run_folder):
    """A folder with a run, some pictures, and a tiny network under the name of the shipped one in it."""
    shutil.copytree(run_folder, tmp_path / "ckpt" / "smoke")
    (tmp_path / "assets").mkdir()
    shutil.copy(run_folder / "best.pth", tmp_path / "assets" / "textiles.pth")
    folder = tmp_path / "path" / "to" / "pictures"
    folder.mkdir(parents=True)
    for i in range(40):
        pixels = np.random.default_rng(i).integers(0, 256, (20, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return tmp_path


def test_there_is_something_to_run():
    assert len(COMMANDS) > 20 and "python my_sampler.py" in COMMANDS
    assert {c.split()[2] for c in COMMANDS if "explore.py" in c} >= {*explore.LESSONS, "app"}


def test_every_command_of_the_exercises_runs_in_this_order(program, world):
    for command in COMMANDS:
        _, script, *argv = shlex.split(command)
        name = script.removesuffix(".py")
        if name == "my_sampler":
            with patch.dict(SAMPLERS):
                exec(CODE[0], {"__name__": "__main__"})
            continue
        if argv[0] == "app":
            assert explore.parser().parse_args(argv).port == 8000  # it would not end; test_app.py uses it
            continue
        short = SHORT.get(argv[0], "") if name == "explore" else "" if "--verify" in argv else SHORT[name]
        code, out, err = program(name, *argv, *shlex.split(short))
        assert code == 0, f"{command}\n{out}{err}"


@pytest.fixture
def shown():
    """The names that the code of the exercises defines."""
    names = {"__name__": "my_sampler"}
    with patch.dict(SAMPLERS):
        for code in CODE[:2]:
            exec(code, names)
        yield names


def test_the_sampler_shown_is_ddim_and_has_fifteen_lines(shown):
    schedule, x = cosine(40), normal(2, 3, 4, 4)
    for n in (1, 7, 40):
        mine, theirs = (
            list(sampler(gaussian(schedule), schedule, x, timesteps=spaced(40, n))) for sampler in (shown["mine"], ddim)
        )
        assert [s.t for s in mine] == [s.t for s in theirs]
        assert_close(mine[-1].x, theirs[-1].x)
    body = CODE[0].split("@torch.no_grad()")[1].split("SAMPLERS")[0]
    assert len(body.strip().splitlines()) <= 15


def test_the_better_sampler_returns_a_point_mass_and_is_nearer_to_the_path_than_ddim(shown):
    schedule, x = cosine(400), normal(2, 3, 4, 4)
    x_0 = normal(1, 3, 4, 4).clamp(-1, 1)
    diffusion = GaussianDiffusion(schedule)

    def knows(x_t, t, y):
        ab = schedule.alpha_bar[t].view(-1, 1, 1, 1)
        return (x_t - ab.sqrt() * x_0) / (1 - ab).sqrt()

    end = last(shown["better"](diffusion.denoiser(knows), schedule, x, timesteps=spaced(400, 9)))
    assert_close(end, x_0.expand_as(end))

    def error(sampler, n):
        walk = sampler(gaussian(schedule), schedule, x, timesteps=spaced(400, n))
        # the path keeps the quantile: x_T standard normal ends at mean + std x_T (for a schedule that ends in noise)
        return (last(walk) - (0.3 + 0.5 * x)).abs().max()

    for n in (10, 20, 40):
        assert error(shown["better"], n) < 0.6 * error(ddim, n)


def test_the_program_shown_draws_what_generate_draws(world, program):
    """The four pictures of the first four classes, as dpmpp has them by default."""
    sampled = ["--ckpt", "assets/textiles.pth", "-n", 4, "--batch-size", 4, "--steps", 15, "--guidance", 1.5]
    assert program("generate", "dpmpp", *sampled, "--device", "cpu")[0] == 0
    exec(CODE[2], {"__name__": "__main__"})
    assert (world / "mine.png").read_bytes() == (world / "out/dpmpp/grid.png").read_bytes()


def test_its_picture_is_drawn_beside_the_others(shown, program, run_folder, tmp_path):
    assert list(explore.walks.SAMPLERS)[-2:] == ["mine", "better"]
    code, _, err = program("explore", "samplers", "--ckpt", run_folder, "--steps", "3", "-n", "1")
    assert (code, err) == (0, "") and (tmp_path / "out" / "explore" / "samplers.png").exists()
