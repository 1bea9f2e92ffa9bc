"""The page that holds all of it: it learns its spiral, and draws it."""

from pathlib import Path

import pytest
import torch
from PIL import Image

import minimal
from diffusion.process import GaussianDiffusion
from diffusion.samplers import ddim
from diffusion.schedule import cosine
from diffusion.steps import Step, spaced


def to_spiral(points):
    """Distance of each point to the nearest of many on the spiral."""
    return torch.cdist(points, minimal.spiral(4000)).min(dim=1).values


def test_the_spiral_is_learned():
    """Untrained noise is 0.43 away in the mean; and all of the spiral is reached."""
    torch.manual_seed(0)
    *_, step = minimal.draw(*minimal.train())
    assert step.t == 0 and to_spiral(step.x).mean() < 0.03 and to_spiral(step.x).quantile(0.95) < 0.1
    assert torch.cdist(minimal.spiral(1000), step.x).min(dim=1).values.max() < 0.15


def test_the_walk_is_ddim_with_all_of_its_noise():
    torch.manual_seed(0)
    model, schedule = minimal.Network(), cosine(minimal.T)
    torch.manual_seed(1)
    walk = minimal.draw(model, schedule, n=50, steps=10)
    torch.manual_seed(1)
    denoise = GaussianDiffusion(schedule, prediction="v").denoiser(lambda x, t, y: model(x, t), clip=False)
    same = list(ddim(denoise, schedule, torch.randn(50, 2), timesteps=spaced(minimal.T, 10), eta=1.0))
    assert [step.t for step in walk] == [step.t for step in same]
    for ours, theirs in zip(walk, same, strict=True):
        torch.testing.assert_close(ours.x, theirs.x, rtol=0, atol=1e-5)
        torch.testing.assert_close(ours.x0, theirs.x0, rtol=0, atol=1e-5)


def test_training_follows_the_loss_of_the_process():
    """One step from the same beginning, with the same draws, ends in the same weights."""
    torch.manual_seed(0)
    model, _ = minimal.train(steps=1, batch=2000)
    torch.manual_seed(0)
    same, diffusion = minimal.Network(), GaussianDiffusion(cosine(minimal.T), prediction="v")
    optimizer = torch.optim.Adam(same.parameters(), 2e-3)
    x_0, t, eps = minimal.spiral(2000), torch.randint(1, minimal.T + 1, (2000,)), torch.randn(2000, 2)
    diffusion.loss(lambda x_t, t, y: same(x_t, t), x_0, t=t, eps=eps).mean().backward()
    optimizer.step()
    assert t.min() == 1 and t.max() == minimal.T
    for ours, theirs in zip(model.parameters(), same.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_the_figure_is_drawn_from_the_first_stage_to_the_last(program, monkeypatch, tmp_path):
    walk = [Step(t, torch.zeros(3, 2), torch.zeros(3, 2)) for t in range(49, -1, -1)]
    shown = []
    monkeypatch.setattr(minimal, "train", lambda: (None, None))
    monkeypatch.setattr(minimal, "draw", lambda *_: walk)
    monkeypatch.setattr("matplotlib.axes.Axes.set", lambda _, title, **__: shown.append(title))
    assert program("minimal")[:2] == (0, "out/minimal.png\n")
    assert shown == ["t = 49", "t = 37", "t = 25", "t = 13", "t = 0"]
    with Image.open(tmp_path / "out/minimal.png") as image:
        assert image.size[0] > 1000


@pytest.mark.parametrize(("argv", "words"), [(["--steps", "5"], "unknown argument --steps"), (["x"], "argument x")])
def test_it_has_no_options(program, argv, words):
    code, _, err = program("minimal", *argv)
    assert code == 2 and err.startswith("error: ") and words in err and not Path("out").exists()


def test_every_call_draws_the_same(program, monkeypatch):
    drawn, points = [], torch.zeros(3, 2)
    monkeypatch.setattr(minimal, "train", lambda: (None, None))
    monkeypatch.setattr(minimal, "draw", lambda *_: drawn.append(torch.rand(1).item()) or [Step(0, points, points)])
    for _ in range(2):
        assert program("minimal")[0] == 0
    assert drawn[0] == drawn[1]


def test_the_figure_shows_the_points_and_the_guess_under_their_names(monkeypatch, tmp_path):
    shown = {}
    monkeypatch.setattr("matplotlib.axes.Axes.scatter", lambda _, x, y, label, **__: shown.update({label: x.item()}))
    monkeypatch.setattr("matplotlib.figure.Figure.legend", lambda *_, **__: None)
    minimal.plot([Step(0, torch.full((1, 2), 1.0), torch.full((1, 2), 2.0))], tmp_path / "plot.png")
    assert shown == {"$x_t$": 1.0, r"$\hat x_0$": 2.0}
