"""The options of a sampler, and what of them a checkpoint cannot do."""

import json
import urllib.error
import urllib.request
from threading import Thread

import pytest
import torch

import cli
import main
import sampling
from config import PRESETS, Config, Diffusion, Sample, UserError, override
from dataset import pictures
from diffusion.samplers import SAMPLERS
from diffusion.schedule import linear
from diffusion.steps import spaced, spaced_logsnr
from lessons.app import App
from painter import Painter


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """The run folder of a training in which no label was ever hidden."""
    folder = tmp_path_factory.mktemp("told") / "smoke"
    flags = ("--train.label_dropout", "0", "--sample.guidance", "1")
    assert cli.run(main.main, ["--preset", "smoke", *flags, "--out", str(folder)]) == 0
    return folder


NEVER = "never saw a picture without its label (train.label_dropout 0): "
LABELLED = "give --label NAME, or take another --ckpt"
UNGUIDED = "leave --guidance out, or take another --ckpt"


@pytest.mark.parametrize(
    "name, argv, advice",
    [
        ("generate", ["ddim", "--guidance", "3"], UNGUIDED),
        ("generate", ["ddpm", "--guidance", "0", "--label", "stars"], UNGUIDED),
        ("generate", ["heun", "--label", "none"], LABELLED),
        ("edit", ["inpaint"], LABELLED),
        ("edit", ["img2img", "--label", "stars", "--guidance", "2"], UNGUIDED),
        ("edit", ["invert"], LABELLED),
        ("evaluate", ["fid", "--features", "random", "--guidance", "2"], UNGUIDED),
        ("evaluate", ["speed", "--guidance", "0"], UNGUIDED),
        ("explore", ["steps", "--label", "none"], LABELLED),
        ("explore", ["samplers", "--guidance", "2"], UNGUIDED),
        ("explore", ["guidance"], UNGUIDED),  # which guides by itself; the next three leave the label out
        *(("explore", [lesson], LABELLED) for lesson in ("denoise", "interpolate", "loss")),
    ],
)
def test_a_null_class_that_was_never_trained_is_refused_in_one_line(program, told, tmp_path, name, argv, advice):
    code, _, err = program(name, *argv, "--ckpt", told, "--out", "o")
    assert (code, err) == (2, f"error: {told}/best.pth {NEVER}{advice}\n")
    assert not list((tmp_path / "o").glob("*"))


@pytest.mark.parametrize(
    "name, argv",
    [
        ("generate", ["ddim", "-n", "1"]),
        ("generate", ["ddim", "-n", "1", "--label", "stars", "--guidance", "1"]),
        ("edit", ["img2img", "-n", "1", "--label", "stars"]),
        ("evaluate", ["fid", "-n", "2", "--features", "pixels", "--guidance", "1"]),
        ("evaluate", ["bpd", "-n", "2", "--levels", "1"]),
        ("explore", ["steps", "-n", "1", "--counts", "2"]),
        ("explore", ["morph", "-n", "1", "--frames", "2", "--label", "stars"]),
    ],
)
def test_with_its_labels_such_a_checkpoint_does_all(program, told, name, argv):
    code, _, err = program(name, *argv, "--ckpt", told, "--out", "o")
    assert code == 0, err


@pytest.mark.parametrize("command", ["bpd", "loglik"])
def test_bits_of_pictures_whose_labels_it_does_not_know_are_refused_too(program, told, tmp_path, command):
    (tmp_path / "plain").mkdir()
    for i in range(4):
        image = torch.full((3, 16, 16), 60 * i, dtype=torch.uint8)
        pictures.save_png(tmp_path / "plain" / f"{i}.png", image)
    code, _, err = program("evaluate", command, "--ckpt", told, "--data", "plain", "--split", "all", "-n", 2)
    assert (code, err) == (2, f"error: {told}/best.pth {NEVER}take --data with the classes that it knows\n")


def test_the_page_refuses_it_too(told):
    app = App(lambda: {"told": told / "best.pth"})
    thread = Thread(target=app.serve_forever)
    thread.start()
    try:
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{app.url}/api/walk?label=none&steps=2", timeout=60)
        assert NEVER in json.loads(refused.value.read())["error"]
        with urllib.request.urlopen(f"{app.url}/api/walk?label=stars&steps=2", timeout=60) as answer:
            assert b"error" not in answer.read()
    finally:
        app.shutdown()
        thread.join()
        app.stop()


def test_a_network_without_classes_has_nothing_to_hide(program):
    flags = ("--model.num_classes", 0, "--train.label_dropout", 0, "--train.steps", 1, "--out", "ckpt/plain")
    assert program("main", "--preset", "smoke", *flags)[0] == 0
    for name, argv in (("generate", ["ddim", "-n", 1]), ("edit", ["inpaint", "-n", 1]), ("explore", ["denoise"])):
        code, _, err = program(name, *argv, "--ckpt", "ckpt/plain")
        assert code == 0, err


# ---------------------------------------------------------------- options, levels, labels


def test_only_ddim_has_an_eta_and_an_unknown_sampler_has_no_option():
    assert [name for name in (*SAMPLERS, "mine") if sampling.has(name, "eta")] == ["ddim"]
    assert sampling.has("heun", "rho") and not sampling.has("dpmpp", "rho")


@pytest.mark.parametrize("T, of_run", [(1000, 50), (5, 3)])
def test_when_nothing_is_asked_ddpm_visits_all_levels_and_the_others_as_many_as_the_run_samples_with(T, of_run):
    config = Config(diffusion=Diffusion(T=T), sample=Sample(steps=of_run))
    found = {name: sampling.usual_steps(name, config) for name in ("ddpm", "ddim", "heun", "ode", "mine")}
    assert found == {"ddpm": T, "ddim": of_run, "heun": of_run, "ode": min(8, T), "mine": of_run}


def test_a_plan_is_the_levels_and_what_is_left_for_the_sampler():
    schedule = linear()
    found = sampling.plan(schedule, 7, {"eta": 0.5, "spacing": "logsnr"})
    assert found == (spaced_logsnr(schedule, 7), {"eta": 0.5})
    assert sampling.plan(schedule, 7, {"snr": 0.1}, top=400) == (spaced(400, 7), {"snr": 0.1})


def test_an_eta_that_is_too_large_is_named_by_the_flag_it_came_with():
    with pytest.raises(UserError, match=r"^--eta 9: eta must be from 0 to "):
        sampling.plan(linear(), 5, {"eta": 9.0})
    with pytest.raises(UserError, match=r"^--etas 9: eta must be"):
        sampling.check_eta(linear(), spaced(1000, 5), 9.0, flag="--etas")


def painter(*classes):
    return Painter(None, PRESETS["smoke"], None, classes, torch.device("cpu"))


def test_labels_are_one_for_all_or_each_class_in_turn_by_the_number_of_the_picture():
    three = painter("a", "b", "c")
    assert three.labels(None, range(2, 6)).tolist() == [2, 0, 1, 2]
    assert three.labels("b", range(2, 6)).tolist() == three.labels("1", range(2, 6)).tolist() == [1] * 4
    assert three.labels(None, [0]).dtype == torch.long
    assert three.labels("none", range(4)) is None and painter().labels(None, range(4)) is None


def test_a_class_called_by_a_number_comes_before_the_number():
    assert painter("1", "0").find_label("1") == 0 and painter("a", "b").find_label("1") == 1


def test_of_a_thousand_classes_a_wrong_label_names_the_first_and_the_nearest():
    painter = Painter(None, PRESETS["smoke"], None, tuple(f"class{i}" for i in range(1000)), "cpu")
    with pytest.raises(
        UserError, match=r"--label class99x: unknown \(did you mean class99\d*\?\); there are 0 to 999"
    ) as e:
        painter.find_label("class99x")
    assert str(e.value).endswith("19 class19, ...")
    few = Painter(None, PRESETS["smoke"], None, tuple(f"class{i}" for i in range(20)), "cpu")
    with pytest.raises(UserError, match=r"19 class19$"):  # all of them
        few.find_label("x")


def test_pictures_without_a_label_are_drawn_without_guidance():
    guided = Painter(None, override(PRESETS["smoke"], {"sample.guidance": 3.0}), None, ("a",), torch.device("cpu"))
    assert guided.usual_guidance(None, labelled=True) == 3.0 and guided.usual_guidance(0.0, labelled=True) == 0.0
    assert guided.usual_guidance(None, labelled=False) == 1.0


def test_what_the_network_takes_a_picture_for_is_clipped_unless_asked_otherwise(run_folder):
    found = Painter.open(run_folder / "best.pth")
    for clip in (True, False):
        _, walk, _ = found.walk("ddim", [0], [50], {}, label="none", clip=clip)
        assert (next(walk).x0.abs().max() <= 1) == clip


@pytest.mark.parametrize("argv", [("generate", "ddim", "-n", 1), ("evaluate", "speed", "-n", 1, "--samplers", "ddim")])
def test_the_network_is_compiled_where_that_is_asked(program, run_folder, monkeypatch, argv):
    seen = []
    monkeypatch.setattr(torch, "compile", lambda model: seen.append(model) or model)
    for flags in ((), ("--compile",)):
        assert program(*argv, "--steps", 1, "--ckpt", run_folder, *flags)[0] == 0
    assert len(seen) == 1
