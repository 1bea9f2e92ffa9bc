"""Editing against closed forms: what must stay stays, what is new has the right distribution; and edit.py itself."""

import json
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from oracles import last, seeded
from PIL import Image
from torch.testing import assert_close

import edit
import sampling
from config import UserError, override
from dataset import pictures, reference
from dataset.pixels import from_uint8, to_uint8
from diffusion import variants
from diffusion.inpaint import inpaint, there_and_back
from diffusion.invert import invert
from diffusion.process import GaussianDiffusion
from diffusion.samplers import ddim, ddpm, dpmpp, heun
from diffusion.schedule import Schedule, cosine, linear, zero_terminal
from diffusion.steps import image_noise, spaced, spaced_logsnr, spaced_rho
from models import checkpoint

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


def test_the_known_pixels_are_on_their_level_number_for_number():
    """With noise that is 1 everywhere; none is drawn for the picture itself, at level 0."""
    schedule, drawn = cosine(10), []
    picture = torch.full((1, 1, 2, 2), 0.5, dtype=torch.float64)

    def ones(x):
        drawn.append(x)
        return torch.ones_like(x)

    walk = inpaint(
        lambda x, t: (0 * x, x), schedule, 0 * picture, picture, torch.tensor(True),
        timesteps=[3, 2, 1], resamples=1, noise_like=ones,
    )  # fmt: skip
    for step in walk:
        expected = schedule.signal[step.t] * picture + schedule.noise[step.t] * (step.t > 0)
        assert_close(step.x, expected)
    assert len(drawn) == 4  # a step's own and the level's, at 2 and at 1


def test_inpainting_keeps_the_known_pixels_bit_for_bit():
    bytes_in = torch.randint(0, 256, (3, 1, 1, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    known = torch.tensor([[True, False]])
    # float32, as in use
    perfect = gaussian(SCHEDULE, PAIR)
    denoise = lambda x, t: tuple(z.float() for z in perfect(x.double(), t))  # noqa: E731
    end = last(inpaint(denoise, SCHEDULE, torch.zeros(3, 1, 1, 2), from_uint8(bytes_in), known))
    assert end.t == 0
    assert torch.equal(end.x[..., 0], from_uint8(bytes_in)[..., 0])
    assert torch.equal(to_uint8(end.x)[..., 0], bytes_in[..., 0])


def repainted(**options):
    """Mean and variance of an unknown pixel whose known neighbour is 1.5, over many pictures."""
    noise = seeded()
    picture = torch.full((6000, 1, 1, 2), 1.5, dtype=torch.float64)
    known = torch.tensor([[True, False]])
    denoise = gaussian(SCHEDULE, PAIR)
    new = last(inpaint(denoise, SCHEDULE, noise(picture), picture, known, noise_like=noise, **options)).x[..., 1]
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


SCHEDULES = pytest.mark.parametrize(
    "schedule", [linear(), cosine(), zero_terminal(cosine())], ids=("linear", "cosine", "zero terminal")
)


def round_trip(schedule, n, refine=0):
    x_0 = torch.linspace(-1, 1, 12, dtype=torch.float64).view(1, 1, 3, 4)
    denoise = gaussian(schedule, 0.1 * torch.eye(12, dtype=torch.float64))
    levels = spaced(1000, n)
    *_, top = invert(denoise, schedule, x_0, timesteps=levels, refine=refine)
    *_, back = ddim(denoise, schedule, top.x, timesteps=levels)
    assert top.t == 1000 and back.t == 0
    return (back.x - x_0).abs().max().item(), top.x


@SCHEDULES
def test_inversion_and_return_has_an_error_that_shrinks_as_one_over_steps(schedule):
    errors = [round_trip(schedule, n)[0] for n in (50, 100, 200)]
    for coarse, fine in pairwise(errors):
        assert 1.8 < coarse / fine < 2.2


@SCHEDULES
def test_inversion_finds_the_noise_of_the_exact_path(schedule):
    """For N(0, s²) the path keeps the quantile: x_T = x_0 √(ᾱ_T s² + 1 - ᾱ_T) / s."""
    ab = schedule.alpha_bar[-1]
    x_0 = torch.linspace(-1, 1, 12, dtype=torch.float64).view(1, 1, 3, 4)
    exact = x_0 * ((ab * 0.1 + 1 - ab) / 0.1).sqrt()
    far, near = ((round_trip(schedule, n)[1] - exact).abs().max() for n in (100, 400))
    assert near < far / 3 < 0.1


@pytest.mark.parametrize("refine", [0, 1, 3])
def test_each_refinement_asks_the_network_once_more_a_step(refine):
    asked = []
    perfect = gaussian(SCHEDULE, 0.1 * torch.eye(4, dtype=torch.float64))
    denoise = lambda x, t: asked.append(t) or perfect(x, t)  # noqa: E731
    last(invert(denoise, SCHEDULE, torch.ones(1, 1, 2, 2).double(), timesteps=[40, 20, 10], refine=refine))
    assert asked == [t for t in (10, 20, 40) for _ in range(1 + refine)]


@SCHEDULES
def test_each_refinement_comes_back_closer_and_many_exactly(schedule):
    errors = [round_trip(schedule, 12, refine)[0] for refine in (0, 1, 2, 3, 60)]
    assert all(fine < coarse / 2 for coarse, fine in pairwise(errors)) and errors[-1] < 1e-9


def test_a_step_from_hardly_any_signal_straight_to_the_picture_is_not_walked_backwards(program, run_folder):
    x_0 = torch.zeros(1, 1, 2, 2, dtype=torch.float64)
    for schedule in (linear(), cosine(), zero_terminal(cosine())):
        with pytest.raises(ValueError, match="from 1000 to 0 is too long"):
            last(invert(gaussian(schedule, torch.eye(4).double()), schedule, x_0, timesteps=[1000]))
    code, _, err = program("edit", "invert", "--ckpt", run_folder, "--steps", 1, "-n", 1)
    assert code == 2 and err.startswith("error: --steps 1: the step from 50 to 0 is too long"), err
    assert program("main", "--preset", "smoke", "--diffusion.T", 1, "--sample.steps", 1, "--out", "one")[0] == 0
    assert program("edit", "invert", "--ckpt", "one", "-n", 1)[0] == 0  # one short step, the only one there is


def test_one_picture_is_inverted_once(program, run_folder, tmp_path):
    """Without noise, n inversions of it would all be the same."""
    Image.new("RGB", (16, 16), "teal").save(tmp_path / "one.png")
    edit = ("--ckpt", run_folder, "--image", "one.png", "--steps", 4, "-n", 3)
    for command, n in (("invert", 1), ("img2img", 3)):
        code, out, _ = program("edit", command, *edit)
        assert code == 0 and f"\n{n} picture{'s' if n > 1 else ''}, and strip.png" in out
        assert len(list(Path(f"out/{command}").glob("0*.png"))) == n


@pytest.mark.parametrize("walk", [invert, partial(inpaint, picture=torch.zeros(1, 1, 1, 2), known=torch.tensor(True))])
def test_editing_builds_no_graph_and_leaves_the_callers_grad_mode_alone(walk):
    weight = torch.ones(1, requires_grad=True)
    for step in walk(lambda x, t: (x * weight, x * weight), SCHEDULE, torch.ones(1, 1, 1, 2), timesteps=[3, 1]):
        assert torch.is_grad_enabled() and not step.x.requires_grad and not step.x0.requires_grad


# ---------------------------------------------------------------- image to image


def from_level(level, x_0, clip=False):
    diffusion = GaussianDiffusion(SCHEDULE)
    noise = seeded()
    x = diffusion.q_sample(x_0, torch.full((len(x_0),), level), noise(x_0))
    denoise = gaussian(SCHEDULE, 0.25 * torch.eye(4, dtype=torch.float64))
    return last(ddpm(denoise, SCHEDULE, x, timesteps=spaced(level, level), noise_like=noise)).x


def test_image_to_image_returns_the_image_at_level_1_and_forgets_it_at_T():
    bright = torch.full((400, 1, 2, 2), 0.9, dtype=torch.float64)
    assert (from_level(1, bright) - bright).abs().max() < 0.15  # one step of noise, std √β_1 = 0.03
    assert abs((from_level(50, bright) - from_level(50, -bright)).mean()) < 0.02
    kept = [(from_level(level, bright) - from_level(level, -bright)).mean().item() for level in (1, 10, 20, 30, 50)]
    assert kept == sorted(kept, reverse=True) and kept[0] > 1.7


# ---------------------------------------------------------------- edit.py


def test_a_picture_to_edit_takes_the_height_and_the_width_of_the_run(tmp_path):
    Image.new("L", (30, 10)).save(tmp_path / "a.png")
    assert reference.open_picture(tmp_path / "a.png", (4, 6), 3).shape == (3, 4, 6)


def test_a_picture_to_edit_that_is_not_there_is_not_called_unreadable(tmp_path):
    with pytest.raises(UserError, match=r"a\.png: No such file or directory$"):
        reference.open_picture(tmp_path / "a.png", (8, 8), 3)


def test_a_picture_to_edit_is_opened_in_the_formats_of_the_training_data_alone(tmp_path):
    """Whatever it is called: a decoder that nobody needs is one more way in."""
    for kind in ("TIFF", "PPM", "EPS"):
        Image.new("RGB", (8, 8)).save(tmp_path / "a.png", format=kind)
        with pytest.raises(UserError, match=r"a\.png: not a readable image \(PNG, JPEG"):
            reference.open_picture(tmp_path / "a.png", (8, 8), 3)


def test_masks_are_what_their_names_say():
    assert edit.read_mask("left", (4, 6))[:, :3].all() and not edit.read_mask("left", (4, 6))[:, 3:].any()
    assert torch.equal(edit.read_mask("right", (4, 6)), ~edit.read_mask("left", (4, 6)))
    assert edit.read_mask("top", (4, 6))[:2].all() and not edit.read_mask("top", (4, 6))[2:].any()
    assert torch.equal(edit.read_mask("bottom", (4, 6)), ~edit.read_mask("top", (4, 6)))
    assert torch.equal(edit.read_mask("border", (8, 8)), ~edit.read_mask("center", (8, 8)))
    assert edit.read_mask("center", (8, 8)).nonzero().tolist() == [[y, x] for y in range(2, 6) for x in range(2, 6)]
    assert edit.read_mask("center", (8, 16)).nonzero().tolist() == [[y, x] for y in range(2, 6) for x in range(4, 12)]


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
    mask[0, 0] = 100  # darker than half: kept
    Image.fromarray(mask).save(tmp_path / "mask.png")
    assert program("edit", "inpaint", "--ckpt", run_folder, "--image", photo, "--mask", "mask.png", "-n", 1)[0] == 0
    changed = (pixels("out/inpaint/00000.png")[::4, ::4] != pixels(photo)).any(axis=2)
    assert changed.any() and not (changed & (mask < 128)).any()
    assert torch.equal(edit.read_mask("mask.png", (16, 16)), torch.from_numpy(mask > 127))


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_img2img_works_without_an_image(program, run_folder, sampler):
    code, _, err = program("edit", "img2img", "--ckpt", run_folder, "--level", 20, "--sampler", sampler, "-n", 2)
    assert code == 0, err
    assert len(list(Path("out/img2img").glob("0*.png"))) == 2
    settings = json.loads(Path("out/img2img/settings.json").read_text())
    assert settings["levels"][0] == 20 and settings.items() >= sampling.defaults(sampler, 0.0).items()


def test_invert_reports_the_error_against_steps(program, run_folder):
    code, out, err = program("edit", "invert", "--ckpt", run_folder, "--steps", 20, "-n", 1, "--refine", 1)
    assert code == 0, err
    assert [int(line.split()[0]) for line in out.splitlines() if "comes back" in line] == [5, 10, 20]
    assert set(json.loads(Path("out/invert/settings.json").read_text())["error_grey_levels"]) == {"5", "10", "20"}


@pytest.fixture(scope="module")
def awake(run_folder, tmp_path_factory):
    """A checkpoint that hears its labels, as after more training; its averaged weights are others; with an eta."""
    config, state = checkpoint.load(run_folder / "best.pth")
    noise = torch.Generator().manual_seed(0)
    model, ema = ({k: v + 0.1 * torch.randn(v.shape, generator=noise) for k, v in state["ema"].items()} for _ in "12")
    config = replace(config, sample=replace(config.sample, guidance=2.0, eta=0.7))
    path = tmp_path_factory.mktemp("awake") / "awake.pth"
    checkpoint.save(path, config, model=model, ema=ema, step=8, classes=state["classes"])
    return path


PLAIN = {"seed": 0, "steps": 5, "weights": "ema", "label": "none", "guidance": 2.0}  # where no flag says otherwise
LABEL = PLAIN | {"label": "3"}
OTHER = {"seed": 7, "steps": 4, "weights": "raw", "label": "8", "guidance": 3.0}


@pytest.fixture
def same_by_hand(program, awake):
    """same_by_hand(command, settings, flags, by_hand): edit.py's files are those of `by_hand`, bit for bit.

    by_hand: (diffusion, denoise, x_0, noise) -> (what the strip shows between, results).  Returns the settings that
    edit.py wrote and what it printed.
    """

    def check(command, settings, flags, by_hand, clip=True):
        given = [word for k, v in settings.items() if v != PLAIN[k] for word in (f"--{k}", v)]
        code, out, err = program("edit", command, "--ckpt", awake, "-n", 2, *given, *flags)
        assert code == 0, err
        model, config, _ = checkpoint.load_model(awake, weights=settings["weights"])
        diffusion = variants.from_config(config.diffusion)
        y = None if settings["label"] == "none" else torch.full((2,), int(settings["label"]))
        denoise = diffusion.denoiser(model, y, guidance=settings["guidance"], clip=clip)
        before = torch.from_numpy(reference.unseen(config.data, 2).pixels)
        noise = image_noise(settings["seed"], [0, 1])
        middle, after = by_hand(diffusion, denoise, from_uint8(before), noise)
        shown = [pictures.upscale(z, 4) for z in (before, to_uint8(middle), to_uint8(after))]
        for i in range(2):
            assert torch.equal(pictures.load_png(f"out/{command}/{i:05d}.png"), shown[2][i])
        assert torch.equal(pictures.load_png(f"out/{command}/strip.png"), pictures.strip(shown))
        written = json.loads(Path(f"out/{command}/settings.json").read_text())
        assert written.items() >= (settings | ({"guidance": None} if y is None else {})).items()
        return written, out

    return check


BOX = (slice(4, 12), slice(4, 12))
TOP = (slice(0, 8),)


@pytest.mark.parametrize(
    ("settings", "flags", "box", "jump", "resamples"),
    [
        (LABEL, (), BOX, 5, 5),
        (OTHER, ("--mask", "top", "--jump", 2, "--resamples", 3), TOP, 2, 3),
    ],
    ids=["defaults", "flags"],
)
def test_inpaint_writes_what_the_library_draws(same_by_hand, settings, flags, box, jump, resamples):
    def by_hand(diffusion, denoise, x_0, noise):
        known = torch.ones(16, 16, dtype=torch.bool)
        known[box] = False
        walk = inpaint(
            denoise, diffusion.schedule, noise(x_0), x_0, known,
            timesteps=spaced(50, settings["steps"]), jump=jump, resamples=resamples, noise_like=noise,
        )  # fmt: skip
        return known * x_0, last(walk).x

    same_by_hand("inpaint", settings, flags, by_hand)


@pytest.mark.parametrize(
    ("settings", "flags", "sampler", "timesteps"),
    [
        (LABEL, (), partial(ddim, eta=0.7), spaced(25, 5)),
        (OTHER, ("--level", 30, "--sampler", "ddpm"), ddpm, spaced(30, 4)),
        (PLAIN, ("--level", 3), partial(ddim, eta=0.7), [3, 2, 1]),  # there are no five levels below 3
        (PLAIN, ("--level", 30, "--sampler", "dpmpp"), dpmpp, lambda part: spaced_logsnr(part, 5)),
        (PLAIN, ("--level", 30, "--sampler", "heun"), heun, lambda part: spaced_rho(part, 5, 7.0)),
    ],
    ids=["defaults", "flags", "low", "dpmpp", "heun"],
)
@pytest.mark.filterwarnings("ignore:the schedule keeps")
def test_img2img_writes_what_the_library_draws(same_by_hand, awake, settings, flags, sampler, timesteps):
    if callable(timesteps):  # of the schedule that ends at the level
        whole = variants.from_config(checkpoint.load(awake)[0].diffusion).schedule
        timesteps = timesteps(Schedule(whole.betas[:31], whole.alpha_bar[:31]))
        assert timesteps[0] == 30 and timesteps != spaced(30, 5)

    def by_hand(diffusion, denoise, x_0, noise):
        x = diffusion.q_sample(x_0, torch.full((2,), timesteps[0]), noise(x_0))
        return x, last(sampler(denoise, diffusion.schedule, x, timesteps=timesteps, noise_like=noise)).x

    assert same_by_hand("img2img", settings, flags, by_hand)[0]["levels"] == timesteps


@pytest.mark.parametrize(
    ("settings", "flags", "refine"),
    [(LABEL, (), 0), (OTHER | {"seed": 0}, ("--refine", 2), 2)],  # it draws no noise
    ids=["defaults", "flags"],
)
def test_invert_writes_what_the_library_finds_and_its_error(same_by_hand, settings, flags, refine):
    error = {}

    def by_hand(diffusion, denoise, x_0, noise):
        for n in (2, settings["steps"]):  # a quarter and half, but no single step; all of them
            levels = spaced(50, n)
            x_T = last(invert(denoise, diffusion.schedule, x_0, timesteps=levels, refine=refine)).x
            x = last(ddim(denoise, diffusion.schedule, x_T, timesteps=levels)).x
            grey, was = ((z.double().numpy() + 1) * 255 / 2 for z in (x, x_0))  # [-1, 1] -> 0..255
            error[str(n)] = float(np.sqrt(np.mean((grey - was) ** 2)))
        return x_T, x

    written, out = same_by_hand("invert", settings, flags, by_hand, clip=False)
    assert written["error_grey_levels"] == pytest.approx(error, rel=1e-5)
    for n, value in written["error_grey_levels"].items():
        assert f"{n} steps: comes back with an error of {value:.2f} grey levels" in out


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
        (("invert", "--label", "cats"), "best.pth: --label cats"),
        (("invert", "--seed", "1"), "--seed"),
        (("paint",), "paint"),
    ],
)
def test_mistakes_are_one_line(program, run_folder, tmp_path, command, words):
    (tmp_path / "text.png").write_text("no image")
    Image.new("L", (16, 16)).save(tmp_path / "black.png")
    code, _, err = program("edit", *command, "--ckpt", run_folder)
    assert code == 2 and len(err.splitlines()) == 1 and words in err, err


def test_where_the_training_pictures_are_gone_a_picture_of_ones_own_is_asked_for(program, run_folder, tmp_path):
    config, state = checkpoint.load(run_folder / "best.pth")
    weights = {key: state[key] for key in ("model", "ema")}
    checkpoint.save(tmp_path / "a.pth", override(config, {"data.source": "gone.zip"}), **weights, step=8, classes=[])
    code, _, err = program("edit", "inpaint", "--ckpt", "a.pth")
    assert code == 2 and err.count("\n") == 1 and "gone.zip" in err and err.endswith("by --image PIC\n")


def test_top_and_bottom_left_and_right_are_all_of_a_picture_with_odd_sides():
    for one, other in (("top", "bottom"), ("left", "right")):
        assert torch.equal(edit.read_mask(one, (5, 7)), ~edit.read_mask(other, (5, 7)))
