"""The pictures that teach: each lesson draws something, and what its numbers claim is so."""

import inspect
import re
from itertools import pairwise

import numpy as np
import pytest
import torch
from oracles import normal
from PIL import Image, ImageSequence
from torch.testing import assert_close

import explore
from config import Config, Diffusion, Model
from diffusion.process import GaussianDiffusion
from lessons import between, figure, network, noise, walks
from lessons.lab import Lab, last, rms
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


# ---------------------------------------------------------------- every lesson


@pytest.mark.parametrize("name", list(explore.LESSONS))
def test_every_lesson_draws_a_picture_and_says_in_two_sentences_what_to_see(program, run_folder, tmp_path, name):
    code, out, err = program("explore", name, "--ckpt", run_folder, *TINY.get(name, []))
    assert (code, err) == (0, "")
    path = tmp_path / "out" / "explore" / f"{name}{'.gif' if name == 'morph' else '.png'}"
    image = np.asarray(Image.open(path).convert("RGB"))
    assert min(image.shape[:2]) >= 60 and len(np.unique(image.reshape(-1, 3), axis=0)) > 20
    said = explore.what_to_look_for(explore.LESSONS[name])
    assert said in out and out.strip().endswith(str(path.relative_to(tmp_path)))
    assert len(re.findall(r"[.](?=\s|$)", said)) == 2, said


def test_every_option_of_a_lesson_is_explained():
    used = {name for lesson in explore.LESSONS.values() for name in explore.options(lesson)}
    assert used == set(explore.OPTIONS)


@pytest.mark.parametrize("name", list(explore.LESSONS))
def test_the_first_line_of_a_lesson_is_its_help(program, name):
    code, out, _ = program("explore", name, "--help")
    assert code == 0 and " ".join(inspect.getdoc(explore.LESSONS[name]).split("\n")[0].split()) in " ".join(out.split())


@pytest.mark.parametrize(
    "argv, expected",
    [
        (["nothing"], "invalid choice"),
        (["steps", "--counts", "0"], "is not a whole number of at least 1"),
        (["forward", "--levels", "51"], "--levels 51: this checkpoint has T = 50, so 0 to 50"),
        (["forward", "--picture", "99"], "--picture 99: there are 2 held-out pictures"),
        (["interpolate", "--other", "99"], "--other 99: there are 2 held-out pictures"),
        (["forward", "--data", "nowhere"], "no source is called 'nowhere'"),
        (["eta", "--etas", "0,9"], "--etas 9: eta must be from 0 to"),
        (["samplers", "--steps", "51"], "--steps 51: this checkpoint has T = 50, so 1 to 50"),
        (["morph", "--seeds", "1"], "a morph needs two seeds or more"),
        (["morph", "--along", "line"], "invalid choice: 'line'"),
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
        with pytest.raises(explore.UserError, match=expected):
            call()
    assert walks.seeds(plain, n=2, steps=2) is not None


# ---------------------------------------------------------------- the way down


def test_forward_shows_each_schedule_at_each_level(lab):
    x_0, eps = lab.photo(0), lab.noise([0])[0]
    shown = cells(noise.forward(lab, levels=(0, 20, 50)).axes[0].images[0].get_array(), 2, 3)
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
    found = noise.errors(lab, lab.photos().train[:4], levels)
    snr = lab.schedule.snr[levels]
    x0, eps, v = (torch.tensor(found[k], dtype=torch.float64) for k in ("x0", "eps", "v"))
    assert_close(eps, snr * x0, rtol=1e-3, atol=0)
    assert_close(v, (snr + 1) * x0, rtol=1e-3, atol=0)


def test_the_error_is_the_training_loss(lab):
    x_0, t = lab.photos().train[:4], 20
    eps, _ = lab.noise(range(4))
    expected = lab.diffusion.loss(lab.model, x_0, None, t=torch.full((4,), t), eps=eps).mean()
    assert_close(noise.errors(lab, x_0, [t])[lab.diffusion.prediction][0], expected.item(), rtol=1e-5, atol=0)


# ---------------------------------------------------------------- the way back


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


def cells(axes_image, rows, columns):
    """The pictures of a wall, cut out again: (rows, columns, h, w, 3)."""
    sheet = np.asarray(axes_image)
    h, w = (sheet.shape[0] + 6) // rows, (sheet.shape[1] + 6) // columns
    return np.stack(
        [np.stack([sheet[r * h : r * h + h - 6, c * w : c * w + w - 6] for c in range(columns)]) for r in range(rows)]
    )


def test_at_eta_zero_every_draw_is_the_same_picture_and_at_one_it_is_not(lab):
    fig = walks.eta(lab, etas=(0.0, 1.0), draws=3, steps=5)
    pictures = cells(fig.axes[0].images[0].get_array(), 3, 2)
    assert (pictures[0, 0] == pictures[1, 0]).all() and (pictures[0, 0] == pictures[2, 0]).all()
    assert (pictures[0, 1] != pictures[1, 1]).any()


def test_a_wall_keeps_every_pixel_as_a_whole_square():
    rows = normal(2, 3, 3, 4, 4).clamp(-1, 1)
    _, axes = figure.wall(rows, "title", row_names=["a", "b"], column_names=["x", "y", "z"], widest=40)
    pictures = cells(axes.images[0].get_array(), 2, 3)
    assert pictures.shape == (2, 3, 40, 40, 3)
    assert (pictures[:, :, ::10, ::10] == figure.visible(rows).permute(0, 1, 3, 4, 2).numpy()).all()
    assert (pictures.reshape(2, 3, 4, 10, 4, 10, 3) == pictures[:, :, ::10, ::10][:, :, :, None, :, None]).all()
    extent = axes.get_window_extent()
    assert (round(extent.width), round(extent.height)) == axes.images[0].get_array().shape[1::-1]


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_grey_and_transparent_pictures_are_shown_too(channels):
    assert figure.visible(torch.zeros(2, channels, 5, 4)).shape == (2, 3, 5, 4)


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


def test_nearest_finds_the_picture_itself_and_measures_rms():
    images = normal(20, 3, 4, 4)
    distances, indices = network.nearest(images[[7, 3]] + 0.01, images, 2)
    assert indices[:, 0].tolist() == [7, 3]
    assert_close(distances[:, 0], torch.full((2,), 0.01, dtype=torch.float64), rtol=1e-6, atol=1e-8)
    assert (distances[:, 1] > distances[:, 0]).all()


def test_memorise_recognises_a_copy(lab, monkeypatch, capsys):
    """If the sampler hands out training pictures, the median distance is 0."""
    train = lab.photos().train
    monkeypatch.setattr(network, "last", lambda walk: train[torch.arange(16) % len(train)])
    network.memorise(lab, n=2, neighbours=1)
    assert "made 0.000" in capsys.readouterr().out
