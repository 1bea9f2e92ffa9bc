"""The pictures that teach: each lesson draws something, and what its numbers claim is so."""

import inspect
import re
from dataclasses import replace
from itertools import count, pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from oracles import normal
from PIL import Image, ImageSequence
from torch.testing import assert_close

import explore
import generate
import sampling
from config import Config, Data, Diffusion, Model, UserError, override
from dataset import pictures, sources, textiles
from dataset.pixels import from_uint8, to_uint8
from diffusion.process import GaussianDiffusion
from diffusion.samplers import SAMPLERS, ddim
from diffusion.schedule import cosine, linear
from diffusion.steps import image_noise, last, spaced, spaced_logsnr, spaced_rho
from lessons import between, figure, network, noise, walks
from lessons.lab import Lab, rms
from models import checkpoint
from models.attention import Attention
from models.unet import UNet

TINY = {  # options that make a lesson quick
    "forward": ["--levels", "0,20,50"],
    "denoise": ["--levels", "0,20,50", "--steps", "3"],
    "steps": ["--counts", "2,5", "-n", "2"],
    "samplers": ["--steps", "3", "-n", "1"],
    "eta": ["--steps", "3", "--etas", "0,1", "--draws", "2"],
    "seeds": ["-n", "2", "--steps", "2"],
    "morph": ["--frames", "5", "-n", "2", "--steps", "3"],
    "interpolate": ["--levels", "0,25", "--mixtures", "3", "--steps", "4"],
    "guidance": ["--scales", "0,2", "--steps", "2"],
    "loss": ["--images", "4", "--points", "3"],
    "attention": ["--places", "2", "--steps", "2"],
    "memorise": ["-n", "2", "--neighbours", "2", "--steps", "2"],
}


@pytest.fixture(scope="module")
def lab(run_folder):
    """The lab of the smoke checkpoint."""
    return Lab.open(run_folder / "best.pth", seed=3)


@pytest.fixture(scope="module")
def attentive(lively):
    """The lab of a checkpoint that hears its labels, its guidance (3 unless told) and its steps (5)."""
    return Lab.open(lively, seed=3)


def drawn(numbers, seed=3):
    """The noise that generate.py begins these pictures with."""
    return image_noise(seed, numbers)(torch.empty(len(numbers), 3, 16, 16))


def denoiser(lab, label=None, guidance=3.0):
    """What a sampler calls, with nothing of the lessons in between.  label: a number, or several."""
    y = None if label is None else torch.as_tensor(label)
    return lab.diffusion.denoiser(lab.model, y, guidance=1.0 if y is None else guidance)


def walked(lab, x, label=None, guidance=3.0, levels=(), **options):
    return last(ddim(denoiser(lab, label, guidance), lab.schedule, x, timesteps=levels, **options))


def cells(axes_image, rows, columns):
    """The pictures of a wall, cut out again: (rows, columns, h, w, 3)."""
    sheet = np.asarray(axes_image)
    h, w = (sheet.shape[0] + 6) // rows, (sheet.shape[1] + 6) // columns
    return np.stack(
        [np.stack([sheet[r * h : r * h + h - 6, c * w : c * w + w - 6] for c in range(columns)]) for r in range(rows)]
    )


def names(fig):
    """What is written beside the rows of a wall, and above its columns."""
    return [[label.get_text() for label in get()] for get in (fig.axes[0].get_yticklabels, fig.axes[0].get_xticklabels)]


def assert_shows(fig, rows, row_names, column_names):
    """The wall shows these pictures: rows of (K, C, H, W), no two alike unless the lesson says so."""
    expected = figure.visible(torch.stack(rows)).permute(0, 1, 3, 4, 2).numpy().astype(int)
    R, K, H, _, _ = expected.shape
    shown = cells(fig.axes[0].images[0].get_array(), R, K)
    k = shown.shape[2] // H
    assert shown.shape[2] == k * H
    assert np.abs(shown[:, :, k // 2 :: k, k // 2 :: k] - expected).max() <= 1  # another batch may round otherwise
    assert names(fig) == [list(row_names), list(column_names)]


# ---------------------------------------------------------------- every lesson


@pytest.mark.parametrize("name", list(explore.LESSONS))
def test_every_lesson_draws_a_picture_and_says_in_two_sentences_what_to_see(program, run_folder, tmp_path, name):
    code, out, err = program("explore", name, "--ckpt", run_folder, *TINY.get(name, []))
    assert (code, err) == (0, "")
    path = tmp_path / "out" / "explore" / f"{name}{'.gif' if name == 'morph' else '.png'}"
    image = np.asarray(Image.open(path).convert("RGB"))
    assert min(image.shape[:2]) >= 60 and len(np.unique(image.reshape(-1, 3), axis=0)) > 20
    said = explore.what_to_look_for(explore.LESSONS[name])
    origin, said_then = out.split("\n", 1)
    assert origin == f"{run_folder / 'best.pth'}: preset smoke, step 8, ema weights" and said in said_then
    assert out.strip().endswith(str(path.relative_to(tmp_path)))
    assert len(re.findall(r"[.](?=\s|$)", said)) == 2, said


def test_every_option_of_a_lesson_is_explained():
    used = {name for lesson in explore.LESSONS.values() for name in explore.options(lesson)}
    assert used == set(explore.OPTIONS)


def test_every_option_reaches_its_lesson_as_typed(program, lively, monkeypatch, tmp_path):
    """And the seed and the weights the lab; --out says where the picture goes."""
    typed = {name: "lerp" if name == "along" else "3" for name in explore.OPTIONS}
    given = {}

    def lesson(**arguments):
        """One line.

        What to see.
        """
        given.update(arguments)
        return figure.blank("title", height=60)

    def called(lab, **arguments):
        return lesson(lab=lab, **arguments)

    called.__doc__ = lesson.__doc__
    option = inspect.Parameter.POSITIONAL_OR_KEYWORD
    called.__signature__ = inspect.Signature(
        [inspect.Parameter(name, option, default=None) for name in ("lab", *typed)]
    )
    monkeypatch.setitem(explore.LESSONS, "called", called)
    argv = [word for name, text in typed.items() for word in (f"-{name}" if len(name) == 1 else f"--{name}", text)]
    argv += ["--ckpt", lively, "--seed", 7, "--weights", "raw", "--out", "elsewhere"]
    assert program("explore", "called", *argv)[::2] == (0, "")
    assert (tmp_path / "elsewhere" / "called.png").exists()
    lab = given.pop("lab")
    assert given == {name: explore.OPTIONS[name][0](text) for name, text in typed.items()}
    raw, _, _ = checkpoint.load_model(lively, weights="raw")
    assert lab.seed == 7 and all(torch.equal(a, b) for a, b in zip(lab.model.parameters(), raw.parameters()))


@pytest.mark.parametrize("name", [n for n, lesson in explore.LESSONS.items() if "data" in explore.options(lesson)])
def test_a_lesson_with_data_of_its_own_looks_at_no_other(lab, monkeypatch, name):
    argv = [name, *TINY[name], "--data", "there"]
    given = {o: v for o, v in vars(explore.parser().parse_args(argv)).items() if o in explore.OPTIONS}
    asked, photos = [], lab.photos()
    monkeypatch.setattr(Lab, "photos", lambda self, data=None: asked.append(data) or photos)
    explore.LESSONS[name](lab, **given)
    assert set(asked) == {"there"}


def test_the_photos_are_those_that_the_run_trained_on_and_those_it_held_out(lab):
    """As main.py draws and splits them, from the data's own seed."""
    config = override(lab.config, {"data.seed": 5, "data.count": 10})
    lab = replace(lab, config=config, trained_on=8)
    drawn, _ = textiles.draw(10, 5, (16, 16))
    images = sources.load("textiles", size=(16, 16), channels=3, count=10, seed=5)
    assert (images.pixels == drawn).all()
    train, val = sources.split(images, lab.config.data.val_fraction, 5)
    photos = lab.photos()
    for found, numbers in ((photos.train, train), (photos.val, val)):
        assert torch.equal(found, torch.from_numpy(drawn[numbers]))
    assert_close(lab.photo(1), photos.val[1:2] / 127.5 - 1)


def test_levels_are_those_asked_for_or_evenly_spread_from_the_lowest_to_the_last(lab):
    assert lab.levels((), 3) == [0, 25, 50] and lab.levels((), 3, low=2) == [2, 26, 50]
    assert lab.levels((), 60) == list(range(51))  # there are no more
    assert lab.levels((40, 7, 40), 3) == [7, 40]
    with pytest.raises(UserError, match="so 1 to 50"):
        lab.levels((0, 7), 3, low=1)


@pytest.mark.parametrize("name", list(explore.LESSONS))
def test_the_first_line_of_a_lesson_is_its_help(program, name):
    code, out, _ = program("explore", name, "--help")
    assert code == 0 and " ".join(inspect.getdoc(explore.LESSONS[name]).split("\n")[0].split()) in " ".join(out.split())


@pytest.mark.parametrize(
    "argv, expected",
    [
        (["nothing"], "invalid choice"),
        (["steps", "--counts", "0"], "is not a whole number of at least 1"),
        (["steps", "--counts", "1,2,51"], "--counts 51: this checkpoint has T = 50, so 1 to 50"),
        (["steps", "--counts", ","], "argument --counts: '' is not a whole number of at least 1"),
        (["steps", "--label", "none", "--guidance", "5"], "--guidance: there is nothing to guide by without a class;"),
        (["forward", "--levels", "51"], "--levels 51: this checkpoint has T = 50, so 0 to 50"),
        (["forward", "--picture", "99"], "--picture 99: there are 2 held-out pictures"),
        (["interpolate", "--other", "99"], "--other 99: there are 2 held-out pictures"),
        (["forward", "--data", "nowhere"], "no source is called 'nowhere'"),
        (["eta", "--etas", "0,9"], "--etas 9: eta must be from 0 to"),
        (["samplers", "--steps", "51"], "--steps 51: this checkpoint has T = 50, so 1 to 50"),
        (["morph", "--seeds", "1"], "a morph needs two seeds or more"),
        (["morph", "--seed", "1"], "--seed"),
        (["schedules", "--seed", "1"], "--seed"),
        (["morph", "--along", "line"], "argument --along: 'line' is not one of slerp, lerp"),
        (["attention", "--layer", "roof"], "--layer roof: unknown; this network has encoder.1.0.attn"),
        (["attention", "--level", "60"], "--level 60: this checkpoint has T = 50"),
        (["seeds", "--guidance", "-1"], "is not a number"),
        (["denoise", "--label", "zigzak"], "--label zigzak: unknown (did you mean zigzag?)"),
        (["memorise", "--ckpt", "no.pth"], "no.pth: no such checkpoint"),
        (["schedules", "--out", "file/below"], "file"),
    ],
)
def test_a_mistake_is_one_line(program, run_folder, tmp_path, argv, expected):
    (tmp_path / "file").write_text("in the way")
    ckpt = [] if "--ckpt" in argv else ["--ckpt", run_folder]
    code, _, err = program("explore", *argv, *(ckpt if argv[0] in explore.LESSONS else []))
    assert code == 2 and err.count("\n") == 1 and expected in err, err


def test_lessons_on_labels_refuse_a_network_without_labels():
    model = Model(8, (1, 2), 1, attention_resolutions=(), mid_blocks=0, dropout=0.0)
    config = Config(model=model, diffusion=Diffusion(T=10, beta_end=0.9))
    plain = Lab(UNet(model).eval(), config, GaussianDiffusion.from_config(config.diffusion), (), torch.device("cpu"))
    for call, expected in (
        (lambda: walks.guidance(plain), "no classes"),
        (lambda: walks.samplers(plain, guidance=2.0), "no classes"),
        (lambda: network.attention(plain), "no attention layer"),
    ):
        with pytest.raises(UserError, match=expected):
            call()
    assert walks.seeds(plain, n=2, steps=2) is not None


# ---------------------------------------------------------------- the way down


def test_forward_shows_each_schedule_at_each_level(lab):
    x_0, eps = lab.photo(0), lab.begin([0])[0]
    fig = noise.forward(lab, levels=(0, 20, 50))
    left = [[f"{s.alpha_bar[t]:.0%}" for s in noise.both(lab.T).values()] for t in (0, 20, 50)]
    assert names(fig) == [["linear", "cosine"], [f"t = {t}\n{a}  {b}" for t, (a, b) in zip((0, 20, 50), left)]]
    shown = cells(fig.axes[0].images[0].get_array(), 2, 3)
    for row, schedule in zip(shown, noise.both(lab.T).values()):
        for picture, t in zip(row, (0, 20, 50)):
            ab = schedule.alpha_bar[t]
            expected = figure.visible(ab.sqrt() * x_0.double() + (1 - ab).sqrt() * eps)[0].permute(1, 2, 0).numpy()
            k = picture.shape[0] // expected.shape[0]
            assert np.abs(picture[::k, ::k].astype(int) - expected).max() <= 1


@pytest.mark.parametrize("T", [10, 50, 1000, 4000])
def test_both_schedules_end_in_noise_at_any_T(T):
    for schedule in noise.both(T).values():
        assert schedule.alpha_bar[-1] < 1e-3


def test_the_three_errors_are_one_error_in_three_units(lab):
    """x0-hat - x_0 = -√(1-ᾱ)/√ᾱ (ε̂ - ε), so each error is a known multiple of the other two."""
    levels = [1, 10, 30, 50]
    found = noise.errors(lab, from_uint8(lab.photos().train[:4]), levels)
    snr = lab.schedule.snr[levels]
    x0, eps, v = (torch.tensor(found[k], dtype=torch.float64) for k in ("x0", "eps", "v"))
    assert_close(eps, snr * x0, rtol=1e-3, atol=0)
    assert_close(v, (snr + 1) * x0, rtol=1e-3, atol=0)


def test_the_error_is_the_training_loss(lab):
    x_0, t = from_uint8(lab.photos().train[:4]), 20
    eps, _ = lab.begin(range(4))
    expected = lab.diffusion.loss(lab.model, x_0, None, t=torch.full((4,), t), eps=eps).mean()
    assert_close(noise.errors(lab, x_0, [t])[lab.diffusion.prediction][0], expected.item(), rtol=1e-5, atol=0)


def test_schedules_draws_beta_alpha_bar_snr_and_its_logarithm_against_t(lab):
    panels = noise.schedules(lab).axes
    for name, schedule in noise.both(lab.T).items():
        ab = schedule.alpha_bar[1:]
        for axes, values in zip(panels, (schedule.betas[1:], ab, ab / (1 - ab), ab.logit()), strict=True):
            (line,) = (line for line in axes.lines if line.get_label() == name)
            assert list(line.get_xdata()) == list(range(1, 51))
            assert_close(torch.as_tensor(line.get_ydata()), values)
    assert [axes.get_yscale() for axes in panels] == ["log", "linear", "linear", "linear"]


def test_loss_draws_the_error_of_seen_and_of_held_out_pictures_from_everywhere_in_the_data(attentive):
    fig = noise.loss(attentive, images=20, points=2)
    seen, held_out = (min(20, len(x)) for x in (attentive.photos().train, attentive.photos().val))
    assert held_out < 20 and f"pictures of textiles, {seen} seen and {held_out} held out;" in fig.texts[1].get_text()
    (axes,) = noise.loss(attentive, images=2, points=3).axes
    photos, levels, curves = attentive.photos(), [1, 25, 50], {}
    for line in axes.lines:
        assert list(line.get_xdata()) == levels
        curves[line.get_label(), line.get_linestyle()] = list(line.get_ydata())
    for kind, style, images in (("seen in training", "-", photos.train[[0, -1]]), ("held out", "--", photos.val)):
        found = noise.errors(attentive, from_uint8(images), levels)
        for key, name in (("x0", "the picture"), ("eps", "the noise"), ("v", "the mixture v")):
            assert curves.pop((f"{name}: {kind}", style)) == found[key]
    assert not curves


# ---------------------------------------------------------------- the way back


def test_denoise_shows_a_walk_and_its_guesses_above_and_a_real_picture_and_its_guesses_below(attentive):
    lab, wanted, x = attentive, (50, 20, 0), drawn([0])
    stars = [lab.classes.index("stars")]
    told, blind = denoiser(lab, stars, 2.0), denoiser(lab)
    walk = {50: x, **{s.t: s.x for s in ddim(told, lab.schedule, x, timesteps=[50, 33, 20, 16])}}
    real = {t: lab.diffusion.q_sample(lab.photo(1), torch.tensor([t]), x) for t in wanted}
    with torch.no_grad():
        rows = [
            torch.cat(row)
            for stages, guess in ((walk, told), (real, blind))
            for row in ([stages[t] for t in wanted], [guess(stages[t], t)[0] if t else stages[t] for t in wanted])
        ]
    fig = walks.denoise(lab, levels=(0, 20, 50), steps=3, label="stars", guidance=2.0, picture=1)
    beside = ["walk: $x_t$", r"its guess $\hat{x}_0$", "real: $x_t$", r"its guess $\hat{x}_0$"]
    assert_shows(fig, rows, beside, ["t = 50", "t = 20", "t = 0"])


def test_the_guesses_of_the_walk_are_those_that_led_it_so_no_level_is_asked_twice(attentive):
    levels = []
    hook = attentive.model.register_forward_hook(lambda module, inputs, output: levels.append(inputs[1][0].item()))
    try:
        walks.denoise(attentive, levels=(0, 20, 50), steps=3, guidance=1.0)
    finally:
        hook.remove()
    assert levels == [50, 33, 20, 16, 20, 50]  # the walk, and the real picture's two jumps


@pytest.fixture
def ticking(monkeypatch):
    """A clock for the lessons that moves on by a second whenever it is read."""
    monkeypatch.setattr(walks, "time", SimpleNamespace(perf_counter=count().__next__))


def test_steps_shows_and_measures_each_walk_beside_the_full_chain(attentive, ticking, capsys):
    lab, counts = attentive, [2, 5, 50]
    fig = walks.steps(lab, counts=(5, 2), n=2, label="stars", guidance=2.0)
    stars = [lab.classes.index("stars")] * 2
    ends = [walked(lab, drawn(range(2)), stars, 2.0, spaced(50, c)) for c in counts]
    assert_shows(fig, [torch.stack(row) for row in zip(*ends)], ["stars"] * 2, [f"{c} steps" for c in counts])
    distances = [(end - ends[-1]).flatten(1).square().mean(1).sqrt().mean().item() for end in ends]
    said = [[float(word) for word in line.split()] for line in capsys.readouterr().out.splitlines()[1:]]
    assert said == [[c, 0.5, pytest.approx(d, abs=6e-5)] for c, d in zip(counts, distances)]  # 1 s for two pictures
    (far,), (long,) = (axes.lines for axes in fig.axes[1:])
    assert list(far.get_xdata()) == counts[:-1] and list(far.get_ydata()) == pytest.approx(distances[:-1], rel=1e-4)
    assert list(long.get_xdata()) == counts and list(long.get_ydata()) == [0.5] * 3


def test_samplers_shows_the_end_of_every_sampler_and_counts_its_evaluations(attentive, ticking, monkeypatch):
    lab, ends, above = attentive, [], []
    monkeypatch.setattr(
        walks, "SAMPLERS", {name: SAMPLERS[name] for name in ("ddim", "ode", "dpmpp", "ddpm", "pc", "heun")}
    )  # of which two draw noise, and one chooses its own steps
    levels = {"dpmpp": spaced_logsnr(lab.schedule, 5), "heun": spaced_rho(lab.schedule, 5, 7.0), "ode": [50]}
    for name, sampler in walks.SAMPLERS.items():
        calls, inner = [], denoiser(lab, [0, 1], 2.0)
        noise_like = image_noise(3, range(2))

        def counted(x, t, inner=inner, calls=calls):
            return calls.append(t) or inner(x, t)

        x = noise_like(torch.empty(2, 3, 16, 16))
        visited = levels.get(name, spaced(50, 5))
        ends.append(last(sampler(counted, lab.schedule, x, timesteps=visited, noise_like=noise_like)))
        above.append(f"{name}\n{len(calls)} evaluations\n0.50 s")
    assert len({name.split("\n")[1] for name in above}) > 1
    fig = walks.samplers(lab, steps=5, n=2, guidance=2.0)
    assert_shows(fig, [torch.stack(row) for row in zip(*ends)], lab.classes[:2], above)


@pytest.mark.parametrize("sampler", list(SAMPLERS))
@pytest.mark.parametrize("steps", [1, 7, 50])
def test_a_lesson_walks_over_the_levels_that_generate_gives_the_sampler(lab, sampler, steps):
    by_hand = {"dpmpp": spaced_logsnr(lab.schedule, steps), "heun": spaced_rho(lab.schedule, steps, 7.0)}
    assert lab.spaced(steps, sampler) == by_hand.get(sampler, spaced(50, steps))
    args = generate.parser().parse_args([sampler, "--steps", str(steps)])
    of_levels = {name: getattr(args, name) for name in ("spacing", "rho") if hasattr(args, name)}
    assert lab.spaced(steps, sampler) == sampling.levels(lab.schedule, steps, lab.T, **of_levels)


def test_every_column_of_eta_begins_with_the_same_noise_and_draws_the_same_on_the_way(attentive):
    lab, x = attentive, drawn([0]).repeat(2, 1, 1, 1)
    stars = [lab.classes.index("stars")] * 2
    columns = [
        walked(lab, x, stars, 2.0, spaced(50, 4), eta=eta, noise_like=image_noise(4, range(2))) for eta in (0.5, 1.0)
    ]
    fig = walks.eta(lab, etas=(0.5, 1.0), draws=2, steps=4, label="stars", guidance=2.0)
    assert_shows(fig, [torch.stack(row) for row in zip(*columns)], ["draw 1", "draw 2"], ["η = 0.5", "η = 1"])


def test_in_seeds_rows_share_the_noise_and_columns_the_label(attentive):
    lab = attentive
    rows = [walked(lab, drawn([0], seed).repeat(12, 1, 1, 1), range(12), 2.0, spaced(50, 2)) for seed in (3, 4)]
    assert_shows(walks.seeds(lab, n=2, steps=2, guidance=2.0), rows, ["seed 3", "seed 4"], lab.classes)


def test_in_guidance_rows_share_the_scale_and_columns_noise_and_label(attentive):
    lab = attentive
    rows = [walked(lab, drawn(range(12)), range(12), scale, spaced(50, 2)) for scale in (0.0, 1.5, 4.0)]
    fig = walks.guidance(lab, scales=(0.0, 1.5, 4.0), steps=2)
    assert_shows(fig, rows, ["scale 0", "scale 1.5", "scale 4"], lab.classes)


def test_steps_and_guidance_left_out_are_the_checkpoints_own(attentive):
    lab = attentive
    rows = [walked(lab, drawn([0]).repeat(12, 1, 1, 1), range(12), 3.0, spaced(50, 5))]
    assert_shows(walks.seeds(lab, n=1), rows, ["seed 3"], lab.classes)


def test_the_distance_to_the_full_chain_falls_with_the_steps(lab):
    """With the perfect network of Gaussian data, as lesson `steps` measures it."""
    schedule = lab.schedule

    def denoise(x_t, t):  # every pixel N(0.2, 0.4²)
        ab = schedule.alpha_bar[t]
        x0 = 0.2 + ab.sqrt() * 0.16 / (ab * 0.16 + 1 - ab) * (x_t - ab.sqrt() * 0.2)
        return x0, (x_t - ab.sqrt() * x0) / (1 - ab).sqrt()

    x = normal(2, 3, 4, 4)
    ends = [last(walks.ddim(denoise, schedule, x, timesteps=lab.spaced(n))) for n in (2, 5, 10, 25, 50)]
    distances = [rms(end - ends[-1]).mean().item() for end in ends]
    assert distances[-1] == 0 and all(a > 1.5 * b for a, b in pairwise(distances))


def test_rms_is_taken_image_by_image():
    difference = torch.stack([torch.full((3, 2, 2), 3.0), torch.tensor([0.0, 4.0] * 6).reshape(3, 2, 2)])
    assert_close(rms(difference), torch.tensor([3.0, 8.0**0.5]))


def test_at_eta_zero_every_draw_is_the_same_picture_and_at_one_it_is_not(lab):
    fig = walks.eta(lab, etas=(0.0, 1.0), draws=3, steps=5)
    pictures = cells(fig.axes[0].images[0].get_array(), 3, 2)
    assert (pictures[0, 0] == pictures[1, 0]).all() and (pictures[0, 0] == pictures[2, 0]).all()
    assert (pictures[0, 1] != pictures[1, 1]).any()


def test_a_wall_keeps_every_pixel_as_a_whole_square():
    rows = normal(2, 3, 3, 4, 4).clamp(-1, 1)
    (axes,) = figure.wall(rows, "title", row_names=["a", "b"], column_names=["x", "y", "z"], widest=40).axes
    pictures = cells(axes.images[0].get_array(), 2, 3)
    assert pictures.shape == (2, 3, 40, 40, 3)
    assert (pictures[:, :, ::10, ::10] == figure.visible(rows).permute(0, 1, 3, 4, 2).numpy()).all()
    assert (pictures.reshape(2, 3, 4, 10, 4, 10, 3) == pictures[:, :, ::10, ::10][:, :, :, None, :, None]).all()
    # each name stands at the middle of its pictures
    height, width = 2 * 40 + 6, 3 * 40 + 2 * 6
    assert axes.images[0].get_array().shape == (height, width, 3)
    for ticks, labels, expected in (
        (axes.get_yticks(), axes.get_yticklabels(), {"a": 19.5, "b": 65.5}),
        (axes.get_xticks(), axes.get_xticklabels(), {"x": 19.5, "y": 65.5, "z": 111.5}),
    ):
        assert dict(zip([label.get_text() for label in labels], ticks, strict=True)) == expected
    extent = axes.get_window_extent()
    assert (round(extent.width), round(extent.height)) == axes.images[0].get_array().shape[1::-1]


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_grey_and_transparent_pictures_are_shown_too(channels):
    """The latter on white, as Pillow puts them: the colours below full transparency are nobody's to see."""
    x = normal(2, channels, 5, 4).clamp(-1, 1)
    for picture, shown in zip((127.5 * (x + 1)).round().to(torch.uint8), figure.visible(x)):
        image = pictures.to_pil(picture).convert("RGBA")
        expected = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
        assert np.abs(shown.permute(1, 2, 0).numpy().astype(int) - np.asarray(expected)).max() <= 1


def test_a_class_named_in_any_script_is_drawn_without_a_warning(tmp_path, recwarn):
    with figure.style():
        fig = figure.wall(torch.zeros(1, 1, 3, 4, 4), "t", column_names=["織物"], widest=40)
        figure.save_png(tmp_path / "wall.png", fig)
    assert not recwarn.list


# ---------------------------------------------------------------- between two pictures


def test_slerp_keeps_the_norm_and_turns_at_constant_speed():
    a, b = normal(4, 3, 8, 8, seed=1), normal(4, 3, 8, 8, seed=2)
    lengths = [z.flatten(1).norm(dim=1) for z in (a, b)]

    def angle(p, q):
        p, q = p.flatten(1), q.flatten(1)
        return ((p * q).sum(1) / (p.norm(dim=1) * q.norm(dim=1))).clamp(-1, 1).acos()

    for w in (0.0, 0.25, 0.5, 0.9, 1.0):
        between_them = between.slerp(a, b, w)
        assert_close(between_them.flatten(1).norm(dim=1), (1 - w) * lengths[0] + w * lengths[1])
        assert_close(angle(a, between_them), w * angle(a, b), rtol=0, atol=1e-7)


def test_slerp_and_lerp_begin_and_end_at_their_ends_and_slerp_of_equals_is_that():
    a, b = normal(2, 3, 4, 4, seed=1), normal(2, 3, 4, 4, seed=2)
    for along in between.PATHS.values():
        assert_close(along(a, b, 0.0), a)
        assert_close(along(a, b, 1.0), b)
        assert_close(along(a, a, 0.3), a)
    assert_close(between.lerp(a, b, 0.25), 0.75 * a + 0.25 * b)


def test_lerp_half_way_between_independent_noises_has_half_the_variance():
    a, b = normal(1, 3, 200, 200, seed=1), normal(1, 3, 200, 200, seed=2)
    assert abs(between.lerp(a, b, 0.5).var().item() - 0.5) < 0.01
    assert abs(between.slerp(a, b, 0.5).var().item() - 1.0) < 0.01


def test_a_path_through_three_noises_meets_each_of_them_evenly():
    stops = [torch.full((1, 1, 1, 1), v) for v in (0.0, 4.0, 8.0)]
    assert [s.item() for s in between.path(stops, 9, between.lerp)] == list(range(9))
    assert len(between.path(stops, 2, between.lerp)) == 2


def test_a_figure_never_replaces_that_of_a_run(program, tmp_path):
    assert program("main", "--preset", "smoke", "--train.steps", 1, "--out", "run")[0] == 0
    before = (tmp_path / "run/loss.png").read_bytes()
    code, _, err = program("explore", "loss", "--ckpt", "run", "--images", 1, "--out", "run")
    assert code == 2 and err == "error: --out run: it holds a run; choose another folder\n"
    assert (tmp_path / "run/loss.png").read_bytes() == before


def test_the_ends_of_a_morph_are_the_pictures_that_generate_makes(program, run_folder, tmp_path):
    common = ["--ckpt", run_folder, "-n", "3"]
    made = []
    for seed in (5, 6):
        assert program("generate", "ddim", *common, "--seed", seed, "--batch-size", 6, "--out", f"s{seed}")[0] == 0
        made.append([np.asarray(Image.open(tmp_path / f"s{seed}" / f"{i:05d}.png")) for i in range(3)])
    frames = between.morph(Lab.open(run_folder / "best.pth"), seeds=(5, 6), frames=2, n=3, upscale=1)
    for frame, expected in zip(frames, made):
        for i, picture in enumerate(expected):
            h, w, _ = picture.shape
            shown = frame[:, 2 : 2 + h, 2 + i * (w + 2) : 2 + i * (w + 2) + w].permute(1, 2, 0).numpy()
            assert np.abs(shown.astype(int) - picture).max() <= 1  # another batch size may round the last bit


def test_every_frame_of_a_morph_is_made_from_the_noise_on_its_path_with_the_labels_of_its_pictures(attentive):
    """In several batches, with labels in turn, guidance, and a path through three seeds."""
    lab, frames, n = attentive, 8, 3
    assert frames * n > between.WORK and between.WORK % n
    film = between.morph(lab, (5, 6, 7), frames, n, along="lerp", steps=2, guidance=2.0, upscale=2)
    a, b, c = (drawn(range(n), seed) for seed in (5, 6, 7))
    for i, frame in enumerate(film):
        place = 2 * i / (frames - 1)
        x = (1 - place) * a + place * b if place <= 1 else (2 - place) * b + (place - 1) * c
        shown = figure.visible(walked(lab, x, range(n), 2.0, spaced(50, 2)))
        expected = pictures.grid(pictures.upscale(shown, 2), columns=n)
        assert frame.shape == expected.shape and (frame.int() - expected.int()).abs().max() <= 1
    assert len(film) == frames
    with_label = between.morph(lab, (5, 6), 2, 2, label="stars", upscale=1)[1]
    stars = [lab.classes.index("stars")] * 2
    expected = pictures.grid(figure.visible(walked(lab, drawn(range(2), 6), stars, 3.0, spaced(50, 5))), columns=2)
    assert (with_label.int() - expected.int()).abs().max() <= 1


def test_interpolate_shows_the_one_picture_at_the_left_and_the_other_at_the_right_in_strides_of_a_whole_walk(attentive):
    lab, eps = attentive, drawn([0])
    a, b = lab.photo(1), lab.photo(0)
    ratios = (0.0, 0.5, 1.0)
    noised = [lab.diffusion.q_sample(x, torch.tensor([25]), eps) for x in (a, b)]
    mixed = torch.cat([(1 - w) * noised[0] + w * noised[1] for w in ratios])
    rows = [torch.cat([(1 - w) * a + w * b for w in ratios]), walked(lab, mixed, levels=[25, 18, 12, 6])]
    fig = between.interpolate(lab, levels=(0, 25), mixtures=3, picture=1, other=0, steps=8)
    assert_shows(fig, rows, ["t = 0", "t = 25"], ["100% + 0%", "50% + 50%", "0% + 100%"])


def test_a_morph_has_the_frames_asked_for(program, run_folder, tmp_path):
    assert program("explore", "morph", "--ckpt", run_folder, "--frames", "7", "-n", "1", "--steps", "2")[0] == 0
    assert sum(1 for _ in ImageSequence.Iterator(Image.open(tmp_path / "out" / "explore" / "morph.gif"))) == 7


def test_at_level_zero_two_pictures_meet_as_the_lerp_of_their_pixels(lab):
    a, b = lab.photo(0), lab.photo(1)
    ratios = [0.0, 0.25, 1.0]
    met = between.meet(lab, a, b, 0, ratios, lab.spaced(5))
    assert_close(met, torch.cat([(1 - w) * a + w * b for w in ratios]))


def test_with_a_perfect_network_the_ends_of_an_interpolation_are_the_two_pictures(lab):
    """Noise a picture to any level: the network that knows it leads back to it."""
    a, visited = lab.photo(0), []

    def knows(x_t, t, y):
        visited.append(t[0].item())
        ab = lab.schedule.alpha_bar[t].view(-1, 1, 1, 1).float()
        return lab.diffusion.target(a, (x_t - ab.sqrt() * a) / (1 - ab).sqrt(), t)

    oracle = Lab(knows, lab.config, lab.diffusion, lab.classes, lab.device)
    for t in (1, 17, 50):
        visited.clear()
        assert_close(between.meet(oracle, a, a, t, [0.0, 0.5], lab.spaced(5)), a.repeat(2, 1, 1, 1), rtol=0, atol=1e-4)
        assert visited[0] == t  # the walk begins where the noise is


# ---------------------------------------------------------------- the network


@pytest.mark.parametrize("linear", [False, True])
def test_attention_weights_sum_to_one_and_give_the_layer_itself(linear):
    torch.manual_seed(0)
    module = Attention(16, heads=4, linear=linear).double()
    torch.nn.init.normal_(module.proj.weight)
    x = normal(2, 16, 3, 5)
    with torch.no_grad():
        weights = network.attention_weights(module, x)
        assert weights.shape == (2, 4, 15, 15) and (weights > 0).all()
        assert_close(weights.sum(-1), torch.ones(2, 4, 15, dtype=torch.float64))
        _, _, v = module.heads_of(x)
        out = (weights @ v).transpose(-2, -1).reshape(x.shape)
        assert_close(x + module.proj(out), module(x))


def test_attention_is_looked_at_where_the_walk_puts_it_and_with_the_class(lab, monkeypatch):
    """What the layer was given when the denoiser asked, and of the two halves of guidance the one with the class."""
    given, seen = [], []
    name, layer = next(iter(network.layers(lab.model).items()))
    layer.register_forward_hook(lambda module, inputs, output: given.append(inputs[0]))
    real = network.attention_weights
    monkeypatch.setattr(network, "attention_weights", lambda module, x: seen.append(x) or real(module, x))
    network.attention(lab, name, places=1, steps=3, guidance=2.0)
    assert len(given[-1]) == 2 and len(seen) == 1
    assert torch.equal(seen[0], given[-1][:1]) and not torch.equal(seen[0], given[-1][1:])


def test_the_square_is_where_the_pixel_that_asks_stands_and_bright_is_where_it_looks(monkeypatch):
    """On a picture that is not square, with one head that looks at itself and one that looks at the row below."""
    h, w = 8, 12
    model = Model(8, (1, 2), 1, attention_resolutions=(h,), mid_blocks=0, heads=2, dropout=0.0)
    config = Config(
        data=Data(size=(2 * h, 2 * w)), model=model, diffusion=Diffusion(T=10, beta_end=0.9, prediction="x0")
    )
    net = UNet(model, size=config.data.size).eval().requires_grad_(False)
    net.head.bias.fill_(0.5)  # the guess is grey everywhere
    lab = Lab(net, config, GaussianDiffusion.from_config(config.diffusion), (), torch.device("cpu"))
    itself = torch.eye(h * w)
    below = itself.roll(w, dims=1)  # row i, who asks, has its one at i + w
    monkeypatch.setattr(network, "attention_weights", lambda module, x: torch.stack([itself, 0.2 * below])[None])
    fig = network.attention(lab, places=3, steps=2)
    axes = fig.axes[0]
    assert names(fig) == [["place 1", "place 2", "place 3"], [r"guess $\hat{x}_0$", "head 1", "head 2"]]
    assert fig.texts[1].get_text().startswith("layer decoder.0.0.attn, 8 x 12 places, at t = 3;")
    shown = cells(axes.images[0].get_array(), 3, 3)[..., 0]
    k = shown.shape[2] // h  # pixels a place
    cell_h, cell_w = shown.shape[2] + 6, shown.shape[3] + 6
    squares = np.array([[*box.get_xy(), box.get_width(), box.get_height()] for box in axes.patches]).reshape(3, 3, 4)
    asked = []
    for i in range(3):
        for j in range(3):
            left, top, width, height = squares[i, j]
            column, row = (left + 0.5 - j * cell_w) / k, (top + 0.5 - i * cell_h) / k
            asked.append((round(row), round(column)))
            assert (width, height) == (k, k) and (row, column) == pytest.approx(asked[3 * i])
        row, column = asked[3 * i]
        for j, looks_at in ((1, row), (2, (row + 1) % h)):
            expected = np.full((h, w), round(127.5 * 0.35 * 1.5))  # dark
            expected[looks_at, column] = round(127.5 * 1.5)  # the guess itself
            assert (shown[i, j, k // 2 :: k, k // 2 :: k] == expected).all()
        assert (shown[i, 0] == round(127.5 * 1.5)).all()
    assert len(set(asked)) == 3 and all(0 <= row < h and 0 <= column < w for row, column in asked)


def test_attention_walks_to_its_level_as_it_is_told(attentive):
    lab, layer = attentive, "encoder.1.0.attn"
    stars = [lab.classes.index("stars")]
    told = denoiser(lab, stars, 2.0)
    x = next(s.x for s in ddim(told, lab.schedule, drawn([0]), timesteps=[50, 33, 20, 16]) if s.t == 20)
    fig = network.attention(lab, layer, level=20, places=1, steps=3, label="stars", guidance=2.0)
    shown = cells(fig.axes[0].images[0].get_array(), 1, 3)[0, 0]
    k = shown.shape[0] // 16
    with torch.no_grad():
        expected = figure.visible(told(x, 20)[0])[0].permute(1, 2, 0).numpy().astype(int)
    assert np.abs(shown[::k, ::k] - expected).max() <= 1
    assert fig.texts[1].get_text().startswith(f"layer {layer}, 8 x 8 places, at t = 20;")


def test_memorise_recognises_a_copy(lab, monkeypatch, capsys):
    """If the sampler hands out training pictures, the median distance is 0."""
    train = from_uint8(lab.photos().train)
    monkeypatch.setattr(Lab, "draw", lambda *_: train[torch.arange(16) % len(train)])
    network.memorise(lab, n=2, neighbours=1)
    assert "made 0.0," in capsys.readouterr().out


def test_memorise_shows_made_pictures_over_their_nearest_and_measures_many_made_and_held_out(attentive, capsys):
    lab, photos = attentive, attentive.photos()
    fig = network.memorise(lab, n=2, neighbours=2, steps=2, guidance=2.0)
    labels = [i % 12 for i in range(64)]
    made = torch.cat(
        [walked(lab, drawn(range(i, i + 16)), labels[i : i + 16], 2.0, spaced(50, 2)) for i in range(0, 64, 16)]
    )
    made = to_uint8(made)

    def distances(images):  # (B, N), to every training picture
        return (images[:, None].double() - photos.train.double()).square().flatten(2).mean(2).sqrt()

    near, order = distances(made[:2]).sort(dim=1)
    above = [f"{lab.classes[i]}\n{near[i, 0]:.0f}" for i in range(2)]
    rows = [made[:2], photos.train[order[:, 0]], photos.train[order[:, 1]]]
    assert_shows(fig, [from_uint8(row) for row in rows], ["made", "nearest 1", "nearest 2"], above)
    ends = {"made": distances(made).amin(1), "held out": distances(photos.val).amin(1)}
    said = re.findall(r"(made|held out) (\d+\.\d)", capsys.readouterr().out)
    assert {name: float(text) for name, text in said} == {
        k: pytest.approx(v.median().item(), abs=0.06) for k, v in ends.items()
    }
    assert len(fig.axes[1].containers) == 2
    for bars in fig.axes[1].containers:
        ((name, count),) = re.findall(r"(.+) \((\d+)\)", bars[0].get_label())
        assert int(count) == len(ends[name])
        edges = [*(bar.get_x() for bar in bars), bars[-1].get_x() + bars[-1].get_width()]
        heights, _ = np.histogram(ends[name], edges, density=True)
        assert_close(torch.tensor([bar.get_height() for bar in bars]), torch.tensor(heights), rtol=1e-3, atol=1e-6)


# ---------------------------------------------------------------- what a figure says


def test_the_file_of_a_figure_has_its_colours(tmp_path):
    picture = torch.tensor([1.0, -1.0, 0.0]).view(1, 1, 3, 1, 1).expand(1, 1, 3, 4, 4)
    fig = figure.wall(picture, "t", widest=40)
    figure.save_png(tmp_path / "wall.png", fig)
    image, box = np.asarray(Image.open(tmp_path / "wall.png")), fig.axes[0].get_window_extent()
    x, y = round(box.x0 + box.width / 2), image.shape[0] - round(box.y0 + box.height / 2)
    assert image[y, x].tolist() == [255, 0, 128]


def test_each_schedule_of_the_lessons_bears_its_own_name():
    half = noise.both(500)["linear"].betas
    assert half[[1, -1]].tolist() == pytest.approx([2e-4, 0.04])  # half the levels, each twice as noisy
    found = noise.both(1000)
    assert_close(found["linear"].betas, linear().betas)
    assert_close(found["cosine"].betas, cosine().betas)


def test_samplers_draws_the_class_asked_for(attentive, ticking, monkeypatch):
    lab, stars = attentive, attentive.classes.index("stars")
    monkeypatch.setattr(walks, "SAMPLERS", {"ddim": SAMPLERS["ddim"]})
    ends = walked(lab, drawn([0, 1]), [stars] * 2, 2.0, spaced(50, 2))
    fig = walks.samplers(lab, steps=2, n=2, label="stars", guidance=2.0)
    assert_shows(fig, [z[None] for z in ends], ["stars"] * 2, ["ddim\n2 evaluations\n0.50 s"])


def test_memorise_draws_the_class_that_it_names(attentive):
    lab, stars = attentive, attentive.classes.index("stars")
    fig = network.memorise(lab, n=1, neighbours=1, steps=2, label="stars", guidance=2.0)
    made = walked(lab, drawn(range(16)), [stars] * 16, 2.0, spaced(50, 2))[:1]
    shown = cells(fig.axes[0].images[0].get_array(), 2, 1)[0, 0]
    k = shown.shape[0] // 16
    expected = figure.visible(made)[0].permute(1, 2, 0).numpy().astype(int)
    assert np.abs(shown[k // 2 :: k, k // 2 :: k].astype(int) - expected).max() <= 1
    assert names(fig)[1][0].startswith("stars\n")


def test_left_out_a_lesson_compares_what_is_worth_comparing(lab):
    fig = between.interpolate(lab, levels=(0,), mixtures=2)
    assert_shows(fig, [torch.cat([lab.photo(0), lab.photo(1)])], ["t = 0"], ["100% + 0%", "0% + 100%"])
    assert names(between.interpolate(lab, mixtures=2, steps=2))[0] == [f"t = {t}" for t in (0, 10, 20, 30, 40, 50)]
    assert names(walks.steps(lab, n=1))[1] == [f"{c} steps" for c in (5, 10, 25, 50)]
    morph = explore.options(between.morph)
    assert (morph["along"], morph["seeds"]) == ("slerp", (0, 1))


def test_attention_at_the_last_level_looks_at_the_noise_itself(attentive):
    lab = attentive
    fig = network.attention(lab, "encoder.1.0.attn", level=50, places=1, steps=2)
    shown = cells(fig.axes[0].images[0].get_array(), 1, 3)[0, 0]
    k = shown.shape[0] // 16
    with torch.no_grad():
        expected = figure.visible(denoiser(lab, [0])(drawn([0]), 50)[0])[0].permute(1, 2, 0).numpy().astype(int)
    assert np.abs(shown[::k, ::k] - expected).max() <= 1


def test_the_caption_of_loss_says_what_the_network_predicts(attentive):
    edm = replace(attentive, config=override(attentive.config, {"diffusion.process": "edm"}))
    for lab, what in ((attentive, "eps"), (edm, "F of EDM")):
        said = noise.loss(lab, images=2, points=2).texts[1].get_text()
        assert said.endswith(f"the network predicts {what}")


def test_pictures_are_numbered_from_0_up_to_the_last(program, run_folder):
    """Two are held out."""
    assert program("explore", "forward", "--ckpt", run_folder, "--picture", 1)[0] == 0
    code, _, err = program("explore", "forward", "--ckpt", run_folder, "--picture", 2)
    assert code == 2 and "there are 2 held-out pictures, numbered from 0" in err


def test_the_names_of_rows_and_columns_stand_beside_their_middles():
    """Pictures twice as wide as high."""
    axes = figure.wall(torch.zeros(2, 2, 3, 8, 16), "title", row_names=["a", "b"], column_names=["c", "d"]).axes[0]
    height, width = axes.images[0].get_array().shape[:2]
    for ticks, length in ((axes.get_yticks(), height), (axes.get_xticks(), width)):
        assert sum(ticks) / 2 == pytest.approx((length - 1) / 2, abs=1)
