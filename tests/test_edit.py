"""Editing against closed forms: what must stay stays, what is new has the right distribution; and edit.py itself."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from oracles import seeded
from PIL import Image
from torch.testing import assert_close

import edit
from dataset.pixels import from_uint8, to_uint8
from diffusion.inpaint import inpaint, there_and_back
from diffusion.invert import invert
from diffusion.process import GaussianDiffusion
from diffusion.samplers import ddim, ddpm, spaced
from diffusion.schedule import linear

SCHEDULE = linear(50, 1e-3, 0.25)
RHO = 0.8
PAIR = torch.tensor([[1.0, RHO], [RHO, 1.0]], dtype=torch.float64)


def gaussian(schedule, covariance):
    """The perfect Denoise for pictures whose pixels are N(0, covariance) together."""
    eye = torch.eye(len(covariance), dtype=torch.float64)

    def denoise(x_t, t):
        ab = schedule.alpha_bar[t]
        shrink = ab.sqrt() * covariance @ torch.linalg.inv(ab * covariance + (1 - ab) * eye)
        x0 = (x_t.flatten(1) @ shrink.T).view_as(x_t)
        return x0, (x_t - ab.sqrt() * x0) / (1 - ab).sqrt()

    return denoise


# ---------------------------------------------------------------- inpainting


def test_there_and_back_walks_every_stretch_as_often_as_asked():
    pairs = [(4, 3), (3, 2), (2, 1), (1, 0)]
    assert list(there_and_back(pairs, 2, 1)) == pairs
    assert list(there_and_back(pairs, 3, 2)) == [
        (4, 3), (3, 2), (2, 1), (1, 4), (4, 3), (3, 2), (2, 1), (1, 0), (0, 1), (1, 0),
    ]  # fmt: skip


def test_the_known_pixels_are_on_the_level_of_the_walk_all_the_way():
    picture = torch.full((20_000, 1, 1, 2), 0.6, dtype=torch.float64)
    noise, ab = seeded(0), SCHEDULE.alpha_bar
    walk = inpaint(
        gaussian(SCHEDULE, PAIR), SCHEDULE, noise(picture), picture, torch.tensor([[True, False]]),
        timesteps=[50, 30, 10], resamples=1, noise_like=noise,
    )  # fmt: skip
    for step in walk:
        known = step.x[..., 0]
        assert_close(known.mean(), 0.6 * ab[step.t].sqrt(), atol=0.03, rtol=0)
        assert_close(known.std(), (1 - ab[step.t]).sqrt(), atol=0.03, rtol=0)


def test_inpainting_keeps_the_known_pixels_bit_for_bit():
    bytes_in = torch.randint(0, 256, (3, 1, 1, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    known = torch.tensor([[True, False]])
    # float32, as in use
    perfect = gaussian(SCHEDULE, PAIR)
    denoise = lambda x, t: tuple(z.float() for z in perfect(x.double(), t))  # noqa: E731
    *_, last = inpaint(denoise, SCHEDULE, torch.zeros(3, 1, 1, 2), from_uint8(bytes_in), known)
    assert last.t == 0
    assert torch.equal(last.x[..., 0], from_uint8(bytes_in)[..., 0])
    assert torch.equal(to_uint8(last.x)[..., 0], bytes_in[..., 0])


def repainted(**options):
    """Mean and variance of an unknown pixel whose known neighbour is 1.5, over many pictures."""
    noise = seeded()
    picture = torch.full((6000, 1, 1, 2), 1.5, dtype=torch.float64)
    known = torch.tensor([[True, False]])
    denoise = gaussian(SCHEDULE, PAIR)
    *_, last = inpaint(denoise, SCHEDULE, noise(picture), picture, known, noise_like=noise, **options)
    new = last.x[..., 1]
    return new.mean().item(), new.var().item()


def test_resampling_gives_the_unknown_pixels_their_conditional_moments():
    """x_2 given x_1 is N(ρ x_1, 1 - ρ²); replacement without going back underrates what is known."""
    mean, variance = repainted(jump=10, resamples=10)
    assert mean == pytest.approx(RHO * 1.5, abs=0.15)
    assert variance == pytest.approx(1 - RHO**2, abs=0.06)
    plain, _ = repainted(jump=10, resamples=1)
    assert plain < RHO * 1.5 - 0.35


def test_nothing_known_is_ddpm():
    denoise = gaussian(SCHEDULE, PAIR)
    x_T = torch.ones(2, 1, 1, 2, dtype=torch.float64)
    # the noise for the known pixels is drawn too, so here all noise is the same number
    constant = lambda x: torch.full_like(x, 0.3)  # noqa: E731
    *_, a = inpaint(denoise, SCHEDULE, x_T, x_T, torch.tensor(False), resamples=1, noise_like=constant)
    *_, b = ddpm(denoise, SCHEDULE, x_T, noise_like=constant)
    assert_close(a.x, b.x, rtol=0, atol=0)


def test_going_back_up_is_the_forward_process():
    """Without noise x is √ᾱ_t times the picture at every level, however often the walk goes back and forth."""
    x_T = SCHEDULE.alpha_bar[50].sqrt() * torch.tensor([[[[0.7, -0.4]]]], dtype=torch.float64)

    def denoise(x_t, t):
        return x_t / SCHEDULE.alpha_bar[t].sqrt(), torch.zeros_like(x_t)

    for step in inpaint(denoise, SCHEDULE, x_T, x_T, torch.tensor(False), jump=7, noise_like=torch.zeros_like):
        assert_close(step.x, SCHEDULE.alpha_bar[step.t].sqrt() * torch.tensor([[[[0.7, -0.4]]]], dtype=torch.float64))


# ---------------------------------------------------------------- inversion


def round_trip(n, refine=0):
    schedule = linear(1000)
    x_0 = torch.linspace(-1, 1, 12, dtype=torch.float64).view(1, 1, 3, 4)
    denoise = gaussian(schedule, 0.1 * torch.eye(12, dtype=torch.float64))
    levels = spaced(1000, n)
    *_, top = invert(denoise, schedule, x_0, timesteps=levels, refine=refine)
    *_, back = ddim(denoise, schedule, top.x, timesteps=levels)
    assert top.t == 1000 and back.t == 0
    return (back.x - x_0).abs().max().item(), top.x


def test_inversion_and_return_has_an_error_that_shrinks_as_one_over_steps():
    errors = [round_trip(n)[0] for n in (50, 100, 200)]
    for coarse, fine in pairwise(errors):
        assert 1.8 < coarse / fine < 2.2


def test_inversion_finds_the_noise_of_the_exact_path():
    """For N(0, s²) the path keeps the quantile: x_T = x_0 √(ᾱ_T s² + 1 - ᾱ_T) / s."""
    ab = linear(1000).alpha_bar[-1]
    x_0 = torch.linspace(-1, 1, 12, dtype=torch.float64).view(1, 1, 3, 4)
    exact = x_0 * ((ab * 0.1 + 1 - ab) / 0.1).sqrt()
    far, near = ((round_trip(n)[1] - exact).abs().max() for n in (100, 400))
    assert near < far / 3 < 0.1


def test_refined_inversion_is_undone_exactly():
    assert round_trip(20, refine=30)[0] < 1e-9


# ---------------------------------------------------------------- image to image


def from_level(level, x_0, clip=False):
    diffusion = GaussianDiffusion(SCHEDULE)
    noise = seeded()
    x = diffusion.q_sample(x_0, torch.full((len(x_0),), level), noise(x_0))
    denoise = gaussian(SCHEDULE, 0.25 * torch.eye(4, dtype=torch.float64))
    *_, last = ddpm(denoise, SCHEDULE, x, timesteps=spaced(level, level), noise_like=noise)
    return last.x


def test_image_to_image_returns_the_image_at_level_1_and_forgets_it_at_T():
    bright = torch.full((400, 1, 2, 2), 0.9, dtype=torch.float64)
    assert (from_level(1, bright) - bright).abs().max() < 0.15  # one step of noise, std √β_1 = 0.03
    assert abs((from_level(50, bright) - from_level(50, -bright)).mean()) < 0.02
    kept = [(from_level(level, bright) - from_level(level, -bright)).mean().item() for level in (1, 10, 20, 30, 50)]
    assert kept == sorted(kept, reverse=True) and kept[0] > 1.7


# ---------------------------------------------------------------- edit.py


def test_masks_are_what_their_names_say():
    assert edit.read_mask("left", (4, 6))[:, :3].all() and not edit.read_mask("left", (4, 6))[:, 3:].any()
    assert torch.equal(edit.read_mask("right", (4, 6)), ~edit.read_mask("left", (4, 6)))
    assert torch.equal(edit.read_mask("bottom", (4, 6)), ~edit.read_mask("top", (4, 6)))
    assert torch.equal(edit.read_mask("border", (8, 8)), ~edit.read_mask("center", (8, 8)))
    assert edit.read_mask("center", (8, 8)).nonzero().tolist() == [[y, x] for y in range(2, 6) for x in range(2, 6)]


@pytest.fixture
def photo(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "photo.png"
    Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)
    return path


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)


def test_inpaint_changes_the_masked_half_alone(program, run_folder, photo):
    code, out, err = program("edit", "inpaint", "--ckpt", run_folder, "--image", photo, "--mask", "left", "-n", 2)
    assert code == 0 and "out/inpaint" in out, err
    before = pixels(photo)
    for i in range(2):
        after = pixels(f"out/inpaint/{i:05d}.png")[::4, ::4]  # shown enlarged
        assert np.array_equal(after[:, 8:], before[:, 8:]) and not np.array_equal(after[:, :8], before[:, :8])
    assert Path("out/inpaint/strip.png").exists()
    assert json.loads(Path("out/inpaint/settings.json").read_text())["mask"] == "left"


def test_a_mask_can_be_a_picture(program, run_folder, photo, tmp_path):
    mask = np.zeros((16, 16), np.uint8)
    mask[3:6, 3:6] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    assert program("edit", "inpaint", "--ckpt", run_folder, "--image", photo, "--mask", "mask.png", "-n", 1)[0] == 0
    changed = (pixels("out/inpaint/00000.png")[::4, ::4] != pixels(photo)).any(axis=2)
    assert changed.any() and not (changed & (mask == 0)).any()


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_img2img_works_without_an_image(program, run_folder, sampler):
    code, _, err = program("edit", "img2img", "--ckpt", run_folder, "--level", 20, "--sampler", sampler, "-n", 2)
    assert code == 0, err
    assert len(list(Path("out/img2img").glob("0*.png"))) == 2
    assert json.loads(Path("out/img2img/settings.json").read_text())["levels"][0] == 20


def test_invert_reports_the_error_against_steps(program, run_folder):
    code, out, err = program("edit", "invert", "--ckpt", run_folder, "--steps", 20, "-n", 1, "--refine", 1)
    assert code == 0, err
    assert [int(line.split()[0]) for line in out.splitlines() if "comes back" in line] == [5, 10, 20]
    assert set(json.loads(Path("out/invert/settings.json").read_text())["error_grey_levels"]) == {"5", "10", "20"}


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (("inpaint", "--image", "none.png"), "none.png"),
        (("inpaint", "--image", "text.png"), "not a readable image"),
        (("inpaint", "--mask", "centre"), "center"),
        (("inpaint", "--mask", "black.png"), "all one"),
        (("img2img", "--level", "51"), "1 to 50"),
        (("img2img", "--steps", "99"), "1 to 50"),
        (("img2img", "--guidance", "2"), "--label"),
        (("invert", "--label", "cats"), "cats"),
        (("paint",), "paint"),
    ],
)
def test_mistakes_are_one_line(program, run_folder, tmp_path, command, words):
    (tmp_path / "text.png").write_text("no image")
    Image.new("L", (16, 16)).save(tmp_path / "black.png")
    code, _, err = program("edit", *command, "--ckpt", run_folder)
    assert code == 2 and len(err.splitlines()) == 1 and words in err, err
