"""The programs as a user meets them: what they make, and how they refuse."""

import argparse
import hashlib
import inspect
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

import cli
import edit
import evaluate
import explore
import generate
import machine
import main
import outputs
import sampling
from benchmarks import kill
from check import check
from config import PRESETS, Sample, UserError, field_of, field_types, override, parse_value, to_text
from dataset import pictures, sources
from dataset.pixels import to_uint8
from diffusion import variants
from diffusion.process import GaussianDiffusion
from diffusion.samplers import SAMPLERS, ddim
from diffusion.steps import Step, image_noise, spaced, spaced_rho
from models import checkpoint
from models.attention import Attention
from processes import Processes
from trainer import total_steps

ROOT = Path(__file__).resolve().parent.parent
SMOKE = ("--preset", "smoke")


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image).astype(int)


def pngs(folder):
    return sorted(Path(folder).glob("[0-9]*.png"))


def pictures_in(folder, n=8, size=(20, 24), seed=0):
    """n noisy PNGs in a folder."""
    generator = np.random.default_rng(seed)
    Path(folder).mkdir(parents=True, exist_ok=True)
    for i in range(n):
        Image.fromarray(generator.integers(0, 256, (*size, 3), dtype=np.uint8)).save(Path(folder) / f"{i}.png")


# ---------------------------------------------------------------- main.py


def test_what_a_run_says_to_type_next_can_be_typed(program):
    out = program("main", *SMOKE, "--out", "my run")[1]
    line = next(line for line in out.splitlines() if line.startswith("more"))
    words = shlex.split(line.removeprefix("more"))
    assert words == ["python", "generate.py", "ddim", "--ckpt", "my run/best.pth"]
    assert program("generate", *words[2:], "-n", 1)[0] == 0


def test_training_starts_and_ends_with_the_run_folder(program):
    code, out, err = program("main", *SMOKE, "--train.accumulate", 2)
    assert code == 0 and err == ""  # quiet: no progress bar where there is no terminal
    assert out.index("run       ckpt/smoke") < out.index("step ") < out.rindex("run       ckpt/smoke")
    for word in ("parameters", "cpu, fp32", "8 steps of 8 images = 10.7 epochs", "GiB", "generate.py ddim"):
        assert word in out


def test_list_presets_names_every_preset_and_its_data(program):
    code, out, _ = program("main", "--list-presets")
    assert code == 0
    for name in PRESETS:
        assert f"\n{name}\n" in "\n" + out
    assert "16,185" in out and "1,059" in out
    assert "fabrics\n    64x64 pixels, 500,000 steps of 64 images\n" in out  # two batches of 32 a step


def test_help_lists_every_field(program):
    code, out, _ = program("main", "--help")
    assert code == 0
    for name in field_types():
        assert f"--{name} " in out


def test_dry_run_does_two_steps_of_everything_and_leaves_nothing(program, tmp_path):
    code, out, _ = program("main", "--dry-run", "--data.count", "20", "--train.batch_size", "4")
    assert code == 0 and "trained, validated, saved, loaded and sampled" in out
    assert [p.name for p in tmp_path.iterdir()] == []
    assert not Path(re.search(r"^(.+)/last\.pth: ", out, re.M)[1]).exists()


def test_dry_run_works_beside_an_existing_run(program):
    assert program("main", *SMOKE)[0] == 0
    assert program("main", *SMOKE, "--dry-run")[0] == 0


def test_verify_counts_and_shows_the_data_and_stops(program, tmp_path):
    for name in ("cats", "dogs"):
        pictures_in(tmp_path / "pets" / name, 5)
    (tmp_path / "pets/cats/bad.png").write_text("no image")
    code, out, _ = program("main", *SMOKE, "--data", "pets", "--verify")
    assert code == 0
    assert "10 usable, 1 skipped" in out and "cats/bad.png" in out and "cats: 5 images" in out and "dogs: 5" in out
    assert pixels("out/verify/smoke.png").ndim == 3
    assert not (tmp_path / "ckpt").exists()


def test_the_grid_of_verify_never_becomes_data_nor_replaces_a_file_of_the_user(program, tmp_path, monkeypatch):
    pictures_in(tmp_path / "pets/cats", 5)
    monkeypatch.chdir(tmp_path / "pets")
    code, _, err = program("main", *SMOKE, "--data", ".", "--verify")
    assert code == 2 and "lies in the data" in err and not Path("out").exists()
    monkeypatch.chdir(tmp_path)
    Path("mine").mkdir()
    Path("mine/smoke.png").write_text("mine")
    code, _, err = program("main", *SMOKE, "--verify", "--out", "mine")
    assert code == 2 and "mine/smoke.png was not written by" in err and Path("mine/smoke.png").read_text() == "mine"
    assert program("main", *SMOKE, "--verify")[0] == program("main", *SMOKE, "--verify")[0] == 0  # its own it replaces
    assert program("main", *SMOKE, "--verify", "--resume")[0] == 2


def test_verify_shows_what_is_trained_on_as_the_data_seed_draws_and_divides_it(program):
    assert program("main", *SMOKE, "--verify", "--data.count", 200, "--data.seed", 5)[0] == 0
    cloth = sources.load("textiles", size=(16, 16), channels=3, count=200, seed=5)
    train, _ = sources.split(cloth, PRESETS["smoke"].data.val_fraction, seed=5)
    some = torch.from_numpy(cloth.pixels[train[[round(i * 149 / 63) for i in range(64)]]])  # of 150, from all of them
    assert np.array_equal(pixels("out/verify/smoke.png"), pictures.grid(pictures.upscale(some, 4)).permute(1, 2, 0))


def test_verify_shows_the_first_picture_and_the_last_and_64_of_100(program, tmp_path):
    """A folder's files lie class by class, so without the last ones a class would be missing."""
    (tmp_path / "ramp").mkdir()
    for i in range(101):
        Image.new("RGB", (16, 16), (2 * i, 0, 0)).save(tmp_path / f"ramp/{i:03}.png")
    assert program("main", *SMOKE, "--data", "ramp", "--verify", "--data.val_fraction", "0.001")[0] == 0
    train, _ = sources.split(sources.load("ramp", size=(16, 16), channels=3), 0.001, PRESETS["smoke"].data.seed)
    assert len(train) == 100
    shown = pixels("out/verify/smoke.png")[2 :: 64 + 2, 2 :: 64 + 2, 0].flatten()  # a corner of each: 2 pixels between
    assert shown[0] == 2 * train[0] and shown[-1] == 2 * train[-1] and len(set(shown)) == 64


def test_any_field_can_be_set(program, tmp_path):
    flags = [
        "--train.lr",
        "3e-4",
        "--model.channel_mults",
        "1,3",
        "--data.flip",
        "false",
        "--diffusion.min_snr_gamma",
        "5",
    ]
    assert program("main", *SMOKE, "--train.steps", "2", *flags)[0] == 0
    config, _ = checkpoint.load(tmp_path / "ckpt/smoke/last.pth")
    assert (config.train.lr, config.model.channel_mults, config.data.flip) == (3e-4, (1, 3), False)
    assert config.diffusion.min_snr_gamma == 5.0


def test_precision_and_compile_reach_the_network(program, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda net: compiled.append(net) or net)
    _, out, _ = program("main", *SMOKE, "--train.steps", 1, "--compile", "--precision", "bf16")
    assert "cpu, bf16, compiled" in out and len(compiled) == 1


def test_a_budget_in_epochs_replaces_one_in_steps(program, tmp_path):
    assert program("main", *SMOKE, "--train.epochs", "2")[0] == 0
    assert checkpoint.load(tmp_path / "ckpt/smoke/last.pth")[1]["step"] == 3  # 6 images, 2 epochs, batches of 4
    both = override(PRESETS["smoke"], {"train.epochs": 2, "train.steps": 5})
    assert total_steps(both.train, 6) == 5  # asked for together, the steps count


@pytest.mark.parametrize("laid_out", ["flat", "in class folders", "one outside"])
def test_a_folder_of_images_trains_and_brings_its_own_classes(program, tmp_path, laid_out):
    classes = [] if laid_out == "flat" else ["cats", "dogs", "emus"]
    for i, name in enumerate(classes):
        pictures_in(tmp_path / "pets" / name, 4, seed=i)
    if laid_out != "in class folders":
        pictures_in(tmp_path / "pets")
        classes = []
    code, out, err = program("main", *SMOKE, "--data", "pets", "--train.steps", "2")
    assert code == 0, err
    config, state = checkpoint.load(tmp_path / "ckpt/smoke/last.pth")
    assert config.model.num_classes == len(classes) and state["classes"] == classes
    assert ("classes   none in the data" in out) == (not classes)
    assert program("generate", "ddim", "-n", "2")[0] == 0


def test_classes_come_from_the_folders_where_the_preset_wants_any_and_without_them_nothing_guides():
    def fitted(preset, *classes):
        config = check(main.fit_classes(PRESETS[preset], SimpleNamespace(classes=classes), asked={}))
        return config.model.num_classes, config.sample.guidance

    assert fitted("textiles", "cats", "dogs") == (2, 1.5)
    assert fitted("textiles") == (0, 1.0)
    assert fitted("pokemon", "cats", "dogs") == (0, 1.0)


@pytest.mark.parametrize("preset", [p for p in PRESETS if p not in ("smoke", "textiles")])
def test_every_preset_trains_two_steps_and_samples_on_a_local_folder(program, tmp_path, preset):
    """With its own layout at a fraction of its width, so that it takes seconds."""
    pictures_in(tmp_path / "pictures", 8)
    heads = PRESETS[preset].model.heads
    flags = ["--model.channels", 4 * heads if heads > 1 else 8, "--train.batch_size", 2, "--sample.n", 2]
    code, out, err = program("main", "--preset", preset, "--data", "pictures", "--dry-run", *flags)
    assert code == 0 and "sampled" in out, err


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_grey_and_transparent_pictures_of_any_shape(program, tmp_path, channels):
    pictures_in(tmp_path / "pictures")
    flags = ["--data", "pictures", "--data.channels", channels, "--data.size", "16,24", "--train.steps", "2"]
    assert program("main", *SMOKE, *flags)[0] == 0
    assert program("generate", "ddpm", "-n", "3", "--gif", "--strip", "--steps", "4")[0] == 0
    assert pixels("out/ddpm/00002.png").shape == {1: (16, 24), 3: (16, 24, 3), 4: (16, 24, 4)}[channels]


@pytest.mark.parametrize("images", [1, 2, 3])
def test_one_image_is_enough(program, tmp_path, images):
    pictures_in(tmp_path / "pictures", images)
    assert program("main", *SMOKE, "--data", "pictures", "--train.steps", "2")[0] == 0


def test_v_x0_and_min_snr_train(program):
    for prediction in ("eps", "x0", "v"):
        flags = ["--diffusion.prediction", prediction, "--diffusion.min_snr_gamma", "5", "--out", prediction]
        assert program("main", *SMOKE, *flags, "--diffusion.schedule", "cosine", "--train.steps", "2")[0] == 0


MAIN_MISTAKES = [
    (["--preset", "textile"], "did you mean textiles?"),
    (["--preset", "xyz"], "--list-presets"),
    (["--trian.lr", "1"], "did you mean --train.lr?"),
    (["--train.lrr", "1"], "did you mean --train.lr?"),
    (["--lr", "1e-4"], "unknown argument --lr (did you mean --train.lr?)"),
    (["--train.lr", "fast"], "--train.lr fast: expected a number"),
    (["--train.lr", "nan"], "finite"),
    (["--train.lr", "inf"], "finite"),
    (["--train.lr", "0"], "positive"),
    (["--train.lr", "-1e-4"], "--train.lr -0.0001: expected a positive number"),
    (["--train.lr"], "expected one argument"),
    (["--train.steps", "-1"], "0 or more"),
    (["--train.steps", "1.5"], "whole number"),
    (["--train.steps", "0"], "a budget"),
    (["--train.batch_size", "0"], "at least 1"),
    (["--train.ema_decay", "1"], "--train.ema_decay"),
    (["--train.ema_warmup", "pwoer"], "did you mean power?"),
    (["--train.lr_schedule", "cos"], "constant or cosine"),
    (["--train.seed", "-4"], "0 or more"),
    (["--data.size", "30", "--model.patch", "2"], "multiples of 4; nearest to 30: 28 or 32"),
    (["--data.size", "15"], "nearest to 15: 14 or 16"),
    (["--data.size", "1"], "nearest to 1: 2"),
    (["--data.size", "0"], "--data.size"),
    (["--data.size", "16,16,16"], "whole numbers"),
    (["--data.size", "abc"], "whole numbers"),
    (["--data.channels", "2"], "1 (grey), 3 (RGB) or 4 (RGBA)"),
    (["--data.count", "0"], "at least 1"),
    (["--data.val_fraction", "0"], "between 0 and 1"),
    (["--data.val_fraction", "1"], "between 0 and 1"),
    (["--data.flip", "maybe"], "true or false"),
    (["--data", "no/such/place"], "no/such/place"),
    (["--data", ""], "an empty name"),
    (["--data", "cifar11"], "did you mean cifar10"),
    (["--data", "empty"], "empty"),
    (["--data", "text.zip"], "text.zip"),
    (["--model.channels", "6"], "multiple of 4"),
    (["--model.channel_mults", ","], "--model.channel_mults ,: expected whole numbers"),
    (["--model.channel_mults", "1,x"], "--model.channel_mults 1,x: expected whole numbers"),
    (["--model.channel_mults", "1x2"], "--model.channel_mults 1x2: expected whole numbers"),
    (["--model.channel_mults", "1,2,"], "--model.channel_mults 1,2,: expected whole numbers"),
    (["--model.channel_mults", ""], "--model.channel_mults ''"),
    (["--data.size", "32x"], "--data.size 32x: expected whole numbers"),
    (["--model.heads", "3"], "divisor"),
    (["--model.dropout", "1"], "--model.dropout"),
    (["--model.decoder_blocks", "1,2,3"], "--model.decoder_blocks"),
    (["--model.decoder_blocks", "9,1"], "--model.decoder_blocks"),
    (["--model.num_classes", "5"], "the data has 12 classes"),
    (["--model.patch", "0"], "--model.patch"),
    (["--diffusion.schedule", "cosin"], "did you mean cosine?"),
    (["--diffusion.prediction", "epsilon"], "eps or x0 or v"),
    (["--diffusion.T", "0"], "--diffusion.T"),
    (["--diffusion.zero_terminal_snr", "true"], "--diffusion.prediction v or x0"),
    (
        ["--diffusion.zero_terminal_snr", "true", "--diffusion.prediction", "v", "--diffusion.min_snr_gamma", "5"],
        "--diffusion.min_snr_gamma 5.0: expected none",
    ),
    (["--diffusion.beta_start", "0.9"], "beta_start <= beta_end"),
    (
        ["--diffusion.T", "1000", "--diffusion.beta_end", "0.99"],
        "--diffusion.beta_end 0.99: expected less, or a smaller",
    ),
    (["--diffusion.min_snr_gamma", "-1"], "positive number or none"),
    (["--diffusion.min_snr_gamma", "x"], "a number or none"),
    (["--sample.steps", "51"], "1 to --diffusion.T 50"),
    (["--sample.eta", "2"], "0 to 1"),
    (["--device", "tpu"], "--device tpu"),
    (["--device", "cuda:77"], "--device cuda:77"),
    (["--precision", "fp8"], "invalid choice"),
    (["--out", "file"], "file"),
    (["--out", "/proc/nothing/here"], "/proc/nothing"),
    (["--resume"], "nothing to resume"),
    (["surplus"], "surplus"),
    (["--dry"], "did you mean --dry-run?"),
]


@pytest.mark.parametrize(("flags", "words"), MAIN_MISTAKES, ids=lambda v: " ".join(v) if isinstance(v, list) else None)
def test_mistakes_of_main_get_one_line_and_exit_code_2(program, tmp_path, flags, words):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.zip").write_text("not a zip")
    (tmp_path / "file").write_text("a file")
    code, _, err = program("main", *SMOKE, *flags)
    assert code == 2, err
    assert err.startswith("error: ") and err.count("\n") == 1 and words in err, err
    assert not (tmp_path / "ckpt").exists()


@pytest.mark.parametrize(
    "argv", [(main,), (generate,), (generate, "ddim"), (explore, "app"), (evaluate, "fid"), (edit, "invert"), (kill,)],
    ids=lambda argv: " ".join([argv[0].__name__, *argv[1:]]),
)  # fmt: skip
def test_every_help_names_debug_once(capsys, argv):
    program, *command = argv
    with pytest.raises(SystemExit):
        cli.run(program.main, [*command, "--help"])
    out = capsys.readouterr().out
    assert out.count("--debug ") == 1 and out.count("[--debug]") == 1


def test_debug_shows_the_traceback():
    with pytest.raises(UserError):
        cli.run(main.main, ["--preset", "nothing", "--debug"])


def test_a_defect_of_ours_is_not_hidden():
    def broken(argv):
        raise ValueError("ours")

    with pytest.raises(ValueError, match="ours"):
        cli.run(broken, [])


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(), RuntimeError("CUDA out of memory. Tried to allocate 2 GiB\nmore"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
    ],
)  # fmt: skip
def test_out_of_memory_says_what_to_turn_down(capsys, error):
    def hungry(argv):
        raise error

    assert cli.run(hungry, []) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "batch" in err


# ---------------------------------------------------------------- cli


def test_what_only_another_than_the_first_process_is_refused_is_said_in_the_end(monkeypatch, capsys):
    """By then the first, had it been refused it too, would have said so, and torchrun ended us."""
    heard = []
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(cli.time, "sleep", lambda seconds: heard.append((seconds, capsys.readouterr().err)))
    assert cli.run(lambda argv: Path("none").read_text(), []) == 2
    assert heard == [(10, "")] and "none: No such file" in capsys.readouterr().err


def test_warnings_and_mistakes_are_one_plain_line_each_and_leave_stdout_to_the_results(capsys):
    def mistaken(argv):
        warnings.warn("careful", stacklevel=1)
        raise UserError("\x1b[31mred\n.png: not an image")

    assert cli.run(mistaken, []) == 2
    assert capsys.readouterr() == ("", "warning: careful\nerror: ?[31mred .png: not an image\n")


def test_an_error_of_the_system_names_the_file(capsys):
    assert cli.run(lambda argv: Path("nowhere/a.png").read_bytes(), []) == 2
    assert capsys.readouterr().err == "error: nowhere/a.png: No such file or directory\n"


def test_a_log_file_grows_line_by_line(tmp_path):
    """A night's training in the background: what is buffered would not be seen, and lost with a kill."""
    talk = "import cli, os; cli.run(lambda argv: (print('a line'), os._exit(0)))"
    usual = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with open(tmp_path / "log", "w") as log:
        subprocess.run([sys.executable, "-c", talk], cwd=ROOT, stdout=log, env=usual)
    assert (tmp_path / "log").read_text() == "a line\n"


def test_the_users_taste_in_plots_is_not_asked_for(tmp_path):
    (tmp_path / "matplotlibrc").write_text("font.size: 33\n")
    talk = "import matplotlib; print(matplotlib.rcParams['font.size'])"
    ours = f"import cli; cli.run(lambda argv: exec({talk!r}), [])"
    env = {**os.environ, "MPLCONFIGDIR": str(tmp_path)}
    env.pop("MATPLOTLIBRC", None)
    for program, size in ((talk, "33.0"), (ours, "10.0")):
        found = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=env, capture_output=True, text=True)
        assert found.stdout.strip() == size, found.stderr


def test_a_reader_that_goes_away_gets_no_line_and_the_code_of_a_broken_pipe(capsys, monkeypatch):
    """The work may not have been done, so it is no success."""

    def unread(argv):
        raise BrokenPipeError

    closed = []
    monkeypatch.setattr(os, "dup2", lambda nowhere, stdout: closed.append(stdout))
    assert cli.run(unread, []) == 141 and closed == [1]
    assert capsys.readouterr() == ("", "")


def test_the_limits_of_a_number_are_themselves_allowed():
    size, share = cli.whole(1, 64), cli.number(0, 1)
    assert (size("1"), size("64"), share("0")) == (1, 64, 0.0)
    for parse, text in ((size, "0"), (size, "65"), (share, "-0.1"), (share, "1"), (cli.number(), "inf")):
        with pytest.raises(argparse.ArgumentTypeError, match=f"'{text}' is not a "):
            parse(text)


def test_words_shares_and_lists_are_taken_whole_or_refused_by_name():
    paths = cli.several(cli.one_of({"slerp": 1, "lerp": 2}))
    assert paths("lerp,slerp") == ("lerp", "slerp") and paths("lerp") == ("lerp",)
    assert (cli.fraction("0"), cli.fraction("1")) == (0.0, 1.0)
    for parse, text, said in (
        (paths, "slerp,line", "'line' is not one of slerp, lerp"),
        (paths, "lerp,", "'' is not one of slerp, lerp"),
        (cli.several(cli.whole(1)), "3,,4", "'' is not a whole number of at least 1"),
        (cli.fraction, "1.01", "'1.01' is not a number from 0 to 1"),
    ):
        with pytest.raises(argparse.ArgumentTypeError, match=said):
            parse(text)


def test_a_checkpoint_is_that_of_the_newest_run_unless_one_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for time, name in enumerate(("smoke/best", "smoke/last", "b/best", "c/best", "c/last", "a/best")):
        path = tmp_path / f"ckpt/{name}.pth"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        os.utime(path, (time, time))
    found = {
        (None, None): "a/best",
        ("last", None): "c/last",
        (None, "smoke"): "smoke/best",
        ("last", "smoke"): "smoke/last",
        ("ckpt/smoke", None): "smoke/best",
        ("ckpt/smoke/last.pth", None): "smoke/last",
    }
    for named, name in found.items():
        assert cli.find_checkpoint(*named) == Path(f"ckpt/{name}.pth"), named
    with pytest.raises(UserError, match="--preset smoke: --ckpt ckpt/a says which checkpoint"):
        cli.find_checkpoint("ckpt/a", "smoke")


# ---------------------------------------------------------------- config


def test_values_are_parsed_by_the_type_of_the_field():
    assert parse_value("train.lr", "2e-4") == 2e-4 and parse_value("train.steps", "10") == 10
    assert parse_value("data.size", "64") == (64, 64) and parse_value("data.size", "48x64") == (48, 64)
    assert parse_value("model.channel_mults", "1,2,4") == (1, 2, 4) and parse_value("model.decoder_blocks", "") == ()
    assert [parse_value("data.flip", word) for word in ("true", "1", "Yes")] == [True] * 3
    assert [parse_value("data.flip", word) for word in ("false", "0", "No")] == [False] * 3
    assert parse_value("diffusion.min_snr_gamma", "none") is None


def test_every_value_can_be_typed_as_it_is_shown():
    for config in (*PRESETS.values(), override(PRESETS["smoke"], {"data.source": "data/My Cars"})):
        for name in field_types():
            value = field_of(config, name)
            assert parse_value(name, to_text(value)) == value, name


def test_every_preset_passes_its_own_check():
    for name, config in PRESETS.items():
        assert config.name == name
        check(config)


BOUNDS = [  # a field of the preset smoke, the last value that works, the first that does not
    ("data.count", 1, 0),
    ("data.seed", 0, -1),
    ("data.channels", 4, 2),
    ("data.val_fraction", 0.01, 0.0),
    ("data.val_fraction", 0.99, 1.0),
    ("data.size", (8, 16), (8, 16, 16)),
    ("data.size", (16, 16), (16, 15)),
    ("model.heads", 4, 7),
    ("model.dropout", 0.0, -0.1),
    ("model.dropout", 0.99, 1.0),
    ("model.num_res_blocks", 1, 0),
    ("model.mid_blocks", 0, -1),
    ("model.decoder_blocks", (2, 0), (3, 0)),
    ("model.decoder_blocks", (), (2,)),
    ("model.num_classes", 0, -1),
    ("model.channels", 2**16, 2**16 + 4),
    ("data.size", (16, 16), (16, 2**17)),
    ("diffusion.beta_start", 1e-6, 0.0),
    ("diffusion.beta_start", 0.3, 0.31),  # more than beta_end
    ("diffusion.beta_end", 0.9, 1.0),
    ("diffusion.min_snr_gamma", 0.1, 0.0),
    ("train.epochs", 1, -1),
    ("train.accumulate", 1, 0),
    ("train.eval_every", 1, 0),
    ("train.max_skips", 1, 0),
    ("train.val_images", 4, 3),  # one in each quarter of the timesteps
    ("train.distance_images", 2, 1),
    ("train.distance_images", 0, -1),
    ("train.lr", 1e-9, 0.0),
    ("train.warmup_steps", 0, -1),
    ("train.clip_norm", 0.0, -0.1),
    ("train.ema_decay", 0.0, -0.1),
    ("train.ema_decay", 0.9999, 1.0),
    ("train.label_dropout", 0.0, -0.1),
    ("train.label_dropout", 0.99, 1.0),  # no class would be learned
    ("sample.n", 1, 0),
    ("sample.guidance", 1.0, -0.5),
    ("sample.steps", 1, 0),
    ("sample.steps", 50, 51),  # of 50 timesteps
    ("sample.eta", 0.0, -0.1),
    ("sample.eta", 1.0, 1.1),
]


@pytest.mark.parametrize(("name", "works", "fails"), BOUNDS)
def test_a_bound_lies_where_it_should_and_the_message_names_its_flag(name, works, fails):
    check(override(PRESETS["smoke"], {name: works}))
    with pytest.raises(UserError, match=f"^--{name} "):
        check(override(PRESETS["smoke"], {name: fails}))


def test_settings_that_work_or_fail_together():
    check(override(PRESETS["smoke"], {"data.size": (4, 16), "train.distance_images": 2}))  # one side has a texture
    small = {"data.size": (4, 4), "train.distance_images": 2}
    check(override(PRESETS["smoke"], small | {"train.distance_features": "pixels"}))
    check(override(PRESETS["smoke"], small | {"train.distance_images": 0}))
    with pytest.raises(UserError, match=r"^--train\.distance_features random: expected pixels"):
        check(override(PRESETS["smoke"], small))
    check(override(PRESETS["smoke"], {"model.num_classes": 0, "train.label_dropout": 1.0}))  # no class to be learned
    check(override(PRESETS["smoke"], {"diffusion.T": 2000, "diffusion.schedule": "cosine"}))  # its betas count not
    steep = {"diffusion.T": 200, "diffusion.beta_end": 0.95}
    left = np.log10(1 - np.linspace(PRESETS["smoke"].diffusion.beta_start, 0.95, 200)).sum()
    with pytest.raises(UserError, match=rf"^--diffusion\.beta_end 0\.95: .*1e{left:.0f}$"):
        check(override(PRESETS["smoke"], steep))
    one = {"diffusion.T": 1, "sample.steps": 1, "diffusion.prediction": "v", "diffusion.zero_terminal_snr": True}
    with pytest.raises(UserError, match=r"^--diffusion.zero_terminal_snr "):
        check(override(PRESETS["smoke"], one))


ONE_LEVEL = ("--diffusion.T", 1, "--diffusion.beta_start", 0.99, "--diffusion.beta_end", 0.99, "--sample.steps", 1)


def test_a_schedule_of_one_level_is_tried_trained_and_used(program):
    assert program("main", *SMOKE, *ONE_LEVEL, "--dry-run")[0] == 0
    assert program("main", *SMOKE, *ONE_LEVEL, "--out", "run")[0] == 0
    code, _, err = program("edit", "img2img", "--ckpt", "run", "-n", 1)
    assert code == 0, err


def test_a_dry_run_compares_a_few_pictures_only():
    assert main.shrink(override(PRESETS["smoke"], {"train.distance_images": 100})).train.distance_images == 8
    short = main.shrink(PRESETS["smoke"])
    assert (short.train.distance_images, short.sample.steps, short.sample.n) == (0, 2, PRESETS["smoke"].sample.n)


def test_without_flags_a_new_run_of_the_default_preset_is_asked_for(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main.configure(main.parser().parse_args([])) == (PRESETS["textiles"], None, Path("ckpt/textiles"))


def test_the_least_that_a_linear_schedule_may_leave_still_computes():
    """ᾱ_T of 1e-58: x̂_0 and one step from there are finite; 1e-62 is refused."""
    short = {"diffusion.T": 100, "diffusion.beta_start": 0.7372}
    c = check(override(PRESETS["smoke"], short | {"diffusion.beta_end": 0.7372}))
    diffusion = variants.from_config(c.diffusion)
    assert 1e-60 < diffusion.schedule.alpha_bar[-1] < 1e-57
    x = torch.randn(2, 3, 4, 4)
    x0, eps = diffusion.denoiser(lambda x, t, y: x)(x, 100)
    assert torch.isfinite(x0).all() and torch.isfinite(eps).all()
    with pytest.raises(UserError, match=r"^--diffusion\.beta_end 0\.76: .*1e-62$"):
        check(override(PRESETS["smoke"], short | {"diffusion.beta_end": 0.76, "diffusion.beta_start": 0.76}))


def test_guidance_that_was_asked_for_is_not_dropped_where_the_data_has_no_classes(program, tmp_path):
    pictures_in(tmp_path / "pictures")
    flags = (*SMOKE, "--data", "pictures", "--train.steps", 1)
    code, _, err = program("main", *flags, "--sample.guidance", 3)
    assert code == 2 and err == "error: --sample.guidance 3.0: expected 1, as the model has no classes\n"
    assert program("main", *flags)[0] == 0


def test_guidance_needs_classes():
    with pytest.raises(UserError, match="no classes"):
        check(override(PRESETS["cifar10"], {"sample.guidance": 2.0}))


def test_guidance_needs_labels_that_were_hidden_now_and_then():
    default = PRESETS["textiles"]
    with pytest.raises(UserError, match=r"^--train\.label_dropout 0\.0: .*guidance 1\.5"):
        check(override(default, {"train.label_dropout": 0.0}))
    check(override(default, {"train.label_dropout": 0.0, "sample.guidance": 1.0}))


# ---------------------------------------------------------------- generate.py


def test_exactly_n_pictures_one_grid_and_the_settings(program, run_folder):
    code, out, err = program("generate", "ddim", "--ckpt", run_folder / "best.pth", "-n", 5, "--seed", 3)
    assert code == 0 and err == "" and "out/ddim" in out
    assert [p.name for p in pngs("out/ddim")] == [f"{i:05d}.png" for i in range(5)]
    assert {p.name for p in Path("out/ddim").iterdir()} == {p.name for p in pngs("out/ddim")} | {
        "grid.png",
        "settings.json",
    }
    settings = json.loads(Path("out/ddim/settings.json").read_text())
    assert (settings["sampler"], settings["n"], settings["seed"], settings["eta"]) == ("ddim", 5, 3, 0.0)
    assert settings["checkpoint_sha256"] == hashlib.sha256((run_folder / "best.pth").read_bytes()).hexdigest()
    assert settings["threads"] == torch.get_num_threads()


def test_fewer_pictures_replace_more(program, run_folder):
    for n in (6, 2):
        assert program("generate", "ddim", "--ckpt", run_folder, "-n", n, "--gif")[0] == 0
    assert len(pngs("out/ddim")) == 2


def test_n_pictures_have_n_names():
    """What else lies in the folder is not ours."""
    assert outputs.numbered(2) == {"00000.png", "00001.png"} and outputs.numbered(0) == set()


def test_a_film_is_as_large_as_its_first_batch(program, run_folder, monkeypatch):
    """So much is asked whether --upscale would fill the memory: ten frames of two pictures, or of eight."""
    asked = []
    monkeypatch.setattr(cli, "check_upscale", lambda k, size: asked.append(size))
    for batch in (2, 8):
        flags = ("-n", 8, "--batch-size", batch, "--steps", 9, "--gif", "--out", f"o{batch}")
        assert program("generate", "ddim", "--ckpt", run_folder, *flags)[0] == 0
    assert asked == [10 * 2 * 3 * 16 * 16, 10 * 8 * 3 * 16 * 16]


def test_nothing_of_the_users_is_deleted(program, run_folder, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/00077.png").write_text("mine")
    (tmp_path / "mine/.results.mine.tmp").mkdir()
    assert program("generate", "ddim", "--ckpt", run_folder, "-n", 1, "--out", "mine")[0] == 0
    assert (tmp_path / "mine/00077.png").read_text() == "mine" and (tmp_path / "mine/.results.mine.tmp").exists()


@pytest.mark.parametrize("name", ["00000.png", "strip.png", "settings.json"])
@pytest.mark.parametrize("command", [("generate", "ddim"), ("edit", "img2img")])
def test_a_folder_with_a_file_of_the_users_that_would_be_replaced_is_refused(program, run_folder, command, name):
    for text in ("mine", '{"n": 1, "sampler": "mine", "command": "mine"}'):
        Path("mine").mkdir(exist_ok=True)
        (Path("mine") / name).write_text(text)
        flags = ("--ckpt", run_folder, "-n", 1, "--out", "mine")
        code, _, err = program(*command, *flags)
        assert code == 2 and err.count("\n") == 1 and f"mine/{name}" in err and "--out" in err
        assert [p.name for p in Path("mine").iterdir()] == [name] and (Path("mine") / name).read_text() == text


def test_what_one_program_made_the_other_does_not_replace_and_each_replaces_its_own(program, run_folder):
    generated, edited = (("generate", "ddim"), ("edit", "img2img"))
    for first, other in ((generated, edited), (edited, generated)):
        flags = ("--ckpt", run_folder, "--out", first[0], "-n")
        for n in (3, 1, 2):
            assert program(*first, *flags, n)[0] == 0
            assert len(pngs(first[0])) == n
        assert program(*other, *flags, 1)[0] == 2
        assert len(pngs(first[0])) == 2


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_the_same_batch_size_gives_the_same_bytes_whatever_n_is(program, run_folder, sampler):
    def digests(n, *more):
        assert program("generate", sampler, "--ckpt", run_folder, "-n", n, "--steps", 7, *more)[0] == 0
        return [hashlib.sha256(p.read_bytes()).hexdigest() for p in pngs(f"out/{sampler}")]

    seven = digests(7, "--batch-size", 4)
    assert digests(2, "--batch-size", 4) == seven[:2] and digests(5, "--batch-size", 4) == seven[:5]
    assert digests(2, "--batch-size", 4, "--seed", 1) != seven[:2]
    assert len(set(seven)) == 7


@pytest.mark.parametrize("options", [["ddim"], ["ddim", "--eta", "1"], ["ddpm"], ["dpmpp"], ["heun"], ["pc"]])
def test_another_batch_size_moves_no_pixel_by_more_than_one_grey_level(program, run_folder, options):
    shots = []
    for size in (1, 3, 16):
        assert program("generate", *options, "--ckpt", run_folder, "-n", 4, "--steps", 9, "--batch-size", size)[0] == 0
        shots.append(np.stack([pixels(p) for p in pngs(f"out/{options[0]}")]))
    assert abs(shots[0] - shots[1]).max() <= 1 and abs(shots[0] - shots[2]).max() <= 1


def test_generate_is_ddim_on_the_ema_weights(program, run_folder):
    """Recompute picture 1 of the command from the parts of the library."""
    from models.unet import UNet

    flags = ["--ckpt", run_folder, "-n", 2, "--steps", 5, "--seed", 4, "--label", "zigzag", "--guidance", 2]
    assert program("generate", "ddim", *flags)[0] == 0
    config, state = checkpoint.load(run_folder / "best.pth")
    model = UNet(config.model, 3, (16, 16)).eval()
    model.load_state_dict(state["ema"])
    diffusion = GaussianDiffusion.from_config(config.diffusion)
    x_T = image_noise(4, [1])(torch.empty(1, 3, 16, 16))
    denoise = diffusion.denoiser(model, torch.tensor([state["classes"].index("zigzag")]), guidance=2.0)
    *_, end = ddim(denoise, diffusion.schedule, x_T, timesteps=spaced(50, 5))
    assert abs(pixels("out/ddim/00001.png") - to_uint8(end.x)[0].permute(1, 2, 0).int().numpy()).max() <= 1


@pytest.mark.parametrize(
    ("flags", "changed"),
    [
        ([], {}),
        (["--eta", "0"], {"eta": 0.0}),
        (["--guidance", "1"], {"guidance": 1.0}),
        (["--label", "none"], {"label": None}),
        (["--label", "stars"], {"label": 6}),
        (["--no-clip"], {"clip": False}),
        (["--seed", "9"], {"seed": 9}),
        (["--steps", "3"], {"steps": 3}),
        (["--weights", "raw"], {"weights": "raw"}),
    ],
)
def test_every_flag_of_generate_does_what_it_says_and_left_out_the_run_decides(program, lively, flags, changed):
    def picture(weights="ema", steps=5, eta=0.7, guidance=3.0, label=1, clip=True, seed=0):
        """Number 1, from the parts of the library."""
        model, config, _ = checkpoint.load_model(lively, weights=weights)
        diffusion, noise = GaussianDiffusion.from_config(config.diffusion), image_noise(seed, [1])
        y = None if label is None else torch.tensor([label])
        denoise, levels = diffusion.denoiser(model, y, guidance=guidance, clip=clip), spaced(50, steps)
        x_T = noise(torch.empty(1, 3, 16, 16))
        *_, end = ddim(denoise, diffusion.schedule, x_T, timesteps=levels, eta=eta, noise_like=noise)
        return to_uint8(end.x)[0].permute(1, 2, 0).int().numpy()

    assert program("generate", "ddim", "--ckpt", lively, "-n", 2, "--batch-size", 2, *flags)[0] == 0
    assert abs(pixels("out/ddim/00001.png") - picture(**changed)).max() <= 1
    assert not changed or abs(picture(**changed) - picture()).max() > 20  # and the flag matters


def test_a_run_without_labels_on_data_that_has_classes_can_be_sampled(program):
    assert program("main", *SMOKE, "--model.num_classes", 0, "--train.steps", 2)[0] == 0
    assert program("generate", "ddim", "-n", 1, "--batch-size", 1)[0] == 0
    assert checkpoint.load("ckpt/smoke/best.pth")[1]["classes"] == []


def test_the_settings_say_how_the_pictures_were_made(program, lively):
    def written(*flags):
        assert program("generate", "ddim", "--ckpt", lively, "-n", 1, "--batch-size", 1, *flags)[0] == 0
        return json.loads(Path("out/ddim/settings.json").read_text()).items()

    usual = {"step": 8, "label": None, "guidance": 3.0, "clip": True, "compile": False, "batch_size": 1, "upscale": 1}
    usual |= {"weights": "ema", "precision": "fp32"}
    other = {"weights": "raw", "label": "stars", "guidance": 2.0, "precision": "bf16", "upscale": 2}
    flags = [part for name, value in other.items() for part in (f"--{name}", value)]
    assert usual.items() <= written() and {**other, "clip": False}.items() <= written(*flags, "--no-clip")


def test_a_new_sampler_needs_no_options(program, lively, monkeypatch):
    """As the README says: a new function in SAMPLERS."""

    def mine(denoise, schedule, x_T, *, timesteps=None, noise_like=None):
        """DDIM by another name."""
        return ddim(denoise, schedule, x_T, timesteps=timesteps)

    monkeypatch.setitem(SAMPLERS, "mine", mine)
    for name, flags in (("mine", ()), ("ddim", ("--eta", 0))):
        assert program("generate", name, "--ckpt", lively, "-n", 1, "--batch-size", 1, *flags)[0] == 0
    assert (pixels("out/mine/00000.png") == pixels("out/ddim/00000.png")).all()
    assert program("edit", "img2img", "--ckpt", lively, "-n", 1, "--sampler", "mine")[0] == 0
    assert program("evaluate", "speed", "--ckpt", lively, "-n", 1, "--samplers", "mine", "--steps", 2)[0] == 0


def test_half_precision_changes_little(program, run_folder):
    def picture(precision):
        assert program("generate", "ddim", "--ckpt", run_folder, "-n", 1, "--precision", precision)[0] == 0
        return pixels("out/ddim/00000.png")

    assert 0 < abs(picture("bf16") - picture("fp32")).mean() < 5


@pytest.mark.parametrize(("sampler", "steps"), [("ddpm", 50), ("ddim", 5), ("ode", 8)])
def test_left_out_ddpm_visits_every_level_and_ode_shows_eight(program, run_folder, sampler, steps):
    assert program("generate", sampler, "--ckpt", run_folder, "-n", 1, "--batch-size", 1)[0] == 0
    assert json.loads(Path(f"out/{sampler}/settings.json").read_text())["steps"] == steps


def test_left_out_ode_shows_no_more_levels_than_there_are(program, run_folder, tmp_path):
    config, state = checkpoint.load(run_folder / "best.pth")
    config = override(config, {"diffusion.T": 4, "diffusion.beta_end": 0.95, "sample.steps": 2})
    checkpoint.save(tmp_path / "short.pth", config, **{key: state[key] for key in ("model", "ema", "step", "classes")})
    assert program("generate", "ode", "--ckpt", "short.pth", "-n", 1, "--batch-size", 1)[0] == 0
    assert json.loads(Path("out/ode/settings.json").read_text())["steps"] == 4


def test_raw_and_ema_weights_differ(program, run_folder):
    shots = []
    for weights in ("ema", "raw"):
        assert program("generate", "ddim", "--ckpt", run_folder, "-n", 1, "--weights", weights)[0] == 0
        shots.append(pixels("out/ddim/00000.png"))
    assert (shots[0] != shots[1]).any()


def test_upscale_enlarges_without_inventing(program, run_folder):
    shots = []
    for k in (1, 3):
        assert program("generate", "ddim", "--ckpt", run_folder, "-n", 1, "--upscale", k)[0] == 0
        shots.append(pixels("out/ddim/00000.png"))
    assert np.array_equal(shots[0].repeat(3, 0).repeat(3, 1), shots[1])


def test_an_upscale_that_would_fill_the_memory_is_refused_before_the_work(program, run_folder, monkeypatch):
    command = ("generate", "ddim", "--ckpt", run_folder, "--steps", 40, "--upscale", 64)
    code, _, err = program(*command, "--gif")
    assert code == 2 and not Path("out").exists()
    # 16 pictures of 16 x 16 x 3 bytes in 40 frames: 491,520 k² bytes
    assert err.count("\n") == 1 and "--upscale 64: the largest figure would have 1.9 GiB; use --upscale 46 at" in err
    assert program(*command, "-n", 1)[0] == 0
    assert pixels("out/ddim/grid.png").shape[0] == 1024 + 2 * 2
    monkeypatch.setattr(cli, "ENLARGED", 4 * 8 * 2 * 768 * 3**2)  # a strip of four pictures, eight stages, twice
    few = ("generate", "ddim", "--ckpt", run_folder, "-n", 5, "--steps", 9, "--strip", "--upscale")
    assert program(*few, 3)[0] == 0
    assert program(*few, 4)[0] == 2
    monkeypatch.setattr(cli, "ENLARGED", 1)
    assert program(*few, 1)[0] == 0  # what is not enlarged is never refused


def test_a_film_that_would_fill_the_memory_is_refused_before_the_work(program, run_folder, monkeypatch):
    morph = ("explore", "morph", "--ckpt", run_folder, "-n", 2, "--frames", 3, "--steps", 1, "--upscale", 4)
    monkeypatch.setattr(cli, "ENLARGED", 3 * 2 * 768 * 4**2)
    assert program(*morph)[0] == 0
    monkeypatch.setattr(cli, "ENLARGED", 3 * 2 * 768 * 4**2 - 1)
    code, _, err = program(*morph)
    assert code == 2 and "--upscale 4: the largest figure would have" in err and "use --upscale 3 at most" in err


@pytest.mark.parametrize("command", ["edit inpaint", "edit invert", "evaluate bpd", "evaluate fid", "generate ddim"])
def test_more_pictures_than_any_disk_holds_are_refused(program, run_folder, command):
    code, _, err = program(*command.split(), "--ckpt", run_folder, "-n", "9" * 20)
    assert code == 2 and "argument -n: '99999999999999999999' is not a whole number from" in err


def test_gif_and_strip(program, run_folder):
    assert program("generate", "ddim", "--ckpt", run_folder, "-n", 6, "--steps", 12, "--gif", "--strip")[0] == 0
    with Image.open("out/ddim/denoising.gif") as gif:
        assert gif.n_frames == 13  # the noise and every step
    height, width, _ = pixels("out/ddim/strip.png").shape
    assert (height, width) == (
        8 * 18 + 2,
        8 * 18 + 2,
    )  # 4 pictures x (x, x0-hat), 8 stages, of 16 pixels and a gap of 2
    last = pixels("out/ddim/strip.png")[2:18, -18:-2]
    assert np.array_equal(last, pixels("out/ddim/00000.png"))
    assert program("generate", "ddim", "--ckpt", run_folder, "-n", 1, "--steps", 50, "--gif")[0] == 0
    with Image.open("out/ddim/denoising.gif") as gif:
        assert gif.n_frames == 40  # at most


def test_the_strip_and_the_film_show_the_walk_from_its_beginning(program, run_folder):
    """The strip x_t above the guess of it; the film, whose colours are those of a GIF, x_t from the noise on."""
    flags = ["--ckpt", run_folder, "-n", 1, "--batch-size", 1, "--steps", 8, "--gif", "--strip"]
    assert program("generate", "ddim", *flags)[0] == 0
    model, config, _ = checkpoint.load_model(run_folder / "best.pth")
    diffusion, x_T = GaussianDiffusion.from_config(config.diffusion), image_noise(0, [0])(torch.empty(1, 3, 16, 16))
    denoise = diffusion.denoiser(model, torch.tensor([0]))
    walk = list(ddim(denoise, diffusion.schedule, x_T, timesteps=spaced(50, 8)))
    rows = [[to_uint8(z)[0].permute(1, 2, 0).int().numpy() for z in some] for some in zip(*((s.x, s.x0) for s in walk))]
    strip = pixels("out/ddim/strip.png")
    for top, row in zip((2, 20), rows):
        for left, picture in zip(range(2, 8 * 18, 18), row):
            assert abs(strip[top : top + 16, left : left + 16] - picture).max() <= 1
    stages = np.stack([to_uint8(x_T)[0].permute(1, 2, 0).int().numpy(), *rows[0]])
    with Image.open("out/ddim/denoising.gif") as film:
        shown = [np.asarray(frame.convert("RGB"))[2:18, 2:18].astype(int) for frame in ImageSequence.Iterator(film)]
    assert [abs(stages - frame).mean(axis=(1, 2, 3)).argmin() for frame in shown] == list(range(9))


def test_labels_by_name_by_number_and_in_turn(program, run_folder):
    def shots(*flags):
        assert program("generate", "ddim", "--ckpt", run_folder, "-n", 3, *flags)[0] == 0
        return [pixels(p) for p in pngs("out/ddim")]

    by_name, by_number, in_turn, none = (
        shots("--label", "zigzag"),
        shots("--label", "1"),
        shots(),
        shots("--label", "none"),
    )
    assert all(np.array_equal(a, b) for a, b in zip(by_name, by_number))
    assert np.array_equal(in_turn[1], by_name[1]) and not np.array_equal(in_turn[0], by_name[0])
    assert not np.array_equal(none[0], by_name[0])


def test_last_best_and_a_preset_name_a_run(program, tmp_path):
    assert program("main", *SMOKE)[0] == 0
    for flags in (["--ckpt", "last"], ["--ckpt", "best", *SMOKE], SMOKE, ["--ckpt", "ckpt/smoke/last.pth"], []):
        code, out, _ = program("generate", "ddim", "-n", 1, *flags)
        assert code == 0 and out.startswith("ckpt/smoke/"), out


GENERATE_MISTAKES = [
    ([], "required"),
    (["ddmi"], "ddim"),
    (["ddim", "--steps", "0"], "of at least 1"),
    (["ddim", "--steps", "-1"], "of at least 1"),
    (["ddim", "--steps", "abc"], "'abc' is not a whole number"),
    (["ddim", "--steps", "51"], "T = 50"),
    (["ddim", "--eta", "50"], "eta must be from 0 to"),
    (["ddim", "--eta", "-1"], "--eta"),
    (["ddim", "--eta", "nan"], "--eta"),
    (["ddpm", "--eta", "1"], "--eta"),
    (["ddpm", "--variance", "medium"], "small"),
    (["ddim", "-n", "0"], "-n"),
    (["ddim", "-n", "many"], "'many'"),
    (["ddim", "--batch-size", "0"], "--batch-size"),
    (["ddim", "--seed", "-1"], "--seed"),
    (["ddim", "--weights", "best"], "ema"),
    (["ddim", "--label", "12"], "0 to 11"),
    (["ddim", "--label", "zigzga"], "did you mean zigzag?"),
    (["ddim", "--guidance", "-1"], "--guidance"),
    (["ddim", "--guidance", "3", "--label", "none"], "nothing to guide by without a class"),
    (["ddim", "--upscale", "0"], "--upscale"),
    (["ddim", "--stpes", "5"], "did you mean --steps?"),
    (["dpmp"], "(did you mean dpmpp?)"),
    (["ddim", "--weights", "emma"], "(did you mean ema?)"),
    (["ddpm", "--eta", "0.5"], "unknown argument --eta here: it is for ddim; generate.py ddpm --help lists everything"),
    (["ddpm", "--rhoo", "7"], "(did you mean --out?); generate.py ddpm --help lists everything"),  # --rho is heun's
    (["--seed", "7", "ddim"], "--seed: the command comes first, one of ddpm, ddim, dpmpp, heun, pc, ode"),
    (["ddpm", "--spacing=time"], "unknown argument --spacing here: it is for ddim, dpmpp;"),
    (["ddim", "--device", "cuda:99"], "--device"),
    (["ddim", "--out", "file"], "file"),
    (["ddim", "--ckpt", "nothing.pth"], "no such checkpoint"),
    (["ddim", "--ckpt", "n" * 300], "n: File name too long"),  # not that of a file in it
    (["ddim", "--ckpt", "."], "a folder"),
    (["ddim", "--ckpt", "best"], "python main.py"),
    (["ddim", "--preset", "smokee"], "did you mean smoke?"),
    (["ddim", "--preset", "smoke"], "no best.pth"),
    (["ddim", "--rho", "7"], "--rho"),
    (["dpmpp", "--spacing", "even"], "logsnr"),
    (["heun", "--rho", "0.5"], "at least 1"),
    (["pc", "--snr", "1"], "below 1"),
    (["pc", "--snr", "-0.1"], "at least 0"),
    (["pc", "--corrector-steps", "-1"], "at least 0"),
    (["ode", "--tol", "0"], "at least 1e-05"),
]


@pytest.mark.parametrize(
    ("flags", "words"), GENERATE_MISTAKES, ids=lambda v: " ".join(v) if isinstance(v, list) else None
)
def test_mistakes_of_generate_get_one_line_and_exit_code_2(program, run_folder, tmp_path, flags, words):
    (tmp_path / "file").write_text("a file")
    given = [] if "--ckpt" in flags or "--preset" in flags or not flags else ["--ckpt", run_folder]
    code, _, err = program("generate", *flags, *given)
    assert code == 2 and err.startswith("error: ") and err.count("\n") == 1 and words in err, err
    assert not (tmp_path / "out").exists()


SOLVERS = [  # flags, what settings.json must say, network evaluations of 6 steps
    (["dpmpp"], {"spacing": "logsnr"}, 6),
    (["dpmpp", "--spacing", "time"], {"spacing": "time"}, 6),
    (["ddim", "--spacing", "logsnr"], {"spacing": "logsnr"}, 6),
    (["heun", "--rho", "3"], {"rho": 3.0}, 11),
    (["pc"], {"snr": 0.16, "corrector_steps": 1}, 11),
    (["pc", "--snr", "0.1", "--corrector-steps", "2"], {"snr": 0.1, "corrector_steps": 2}, 16),
    (["ode", "--tol", "0.1"], {"tol": 0.1}, None),
]


@pytest.mark.parametrize(("flags", "recorded", "evaluations"), SOLVERS, ids=lambda v: str(v))
def test_solvers_count_their_network_evaluations_and_record_their_options(
    program, run_folder, flags, recorded, evaluations
):
    code, out, _ = program(
        "generate", *flags, "--ckpt", run_folder, "-n", 2, "--batch-size", 1, "--steps", 6, "--strip"
    )
    settings = json.loads(Path(f"out/{flags[0]}/settings.json").read_text())
    assert code == 0 and recorded.items() <= settings.items() and settings["steps"] == 6
    assert settings["evaluations"] == evaluations or (evaluations is None and settings["evaluations"] > 6)
    assert f"{settings['evaluations']} network evaluations" in out
    what = "stages shown" if flags[0] == "ode" else "steps"
    assert f"\n{flags[0]}, 6 {what}, cpu, fp32\n" in out
    assert out.endswith(f"\n2 pictures, grid.png, strip.png in out/{flags[0]}\n")


@pytest.mark.parametrize(
    ("sampler", "words"),
    [
        ("ddpm", "1..T (default: all T)"),
        ("ddim", "1..T (default: the checkpoint's own)"),
        ("ode", "it chooses its own steps"),
    ],
)
def test_the_help_of_a_sampler_says_how_many_steps_it_takes(program, sampler, words):
    code, out, _ = program("generate", sampler, "--help")
    assert code == 0 and words in " ".join(out.split())


def test_the_stages_shown_are_those_of_the_first_batch_and_only_those_asked_for():
    def walk(numbers):  # each picture is as grey as its number, and darker with each step
        x = torch.tensor([float(i) for i in numbers])[:, None, None, None].expand(-1, 3, 2, 2) / 8
        return x, (Step(0, x - i / 32, x - i / 16) for i in (1, 2, 3)), []

    args = argparse.Namespace(n=4, batch_size=2, precision="fp32")
    painter, group = SimpleNamespace(finished=lambda x: x), Processes(0, 1, torch.device("cpu"))
    batches, stages, _ = generate.sample(args, painter, group, walk, 3, {0, 2})
    grey = {start: images[:, 0, 0, 0].tolist() for start, images in batches.items()}
    level = lambda *values: [round(127.5 * (v + 1)) for v in values]  # noqa: E731
    assert grey == {0: level(-3 / 32, 1 / 32), 2: level(5 / 32, 9 / 32)}
    assert stages.keys() == {0, 2} and stages[0][1] is None
    assert stages[0][0][:, 0, 0, 0].tolist() == level(0, 1 / 8)
    assert stages[2][0][:, 0, 0, 0].tolist() == level(-1 / 16, 1 / 16)
    assert stages[2][1][:, 0, 0, 0].tolist() == level(-1 / 8, 0)


@pytest.mark.parametrize(("n", "batch_size", "shown"), [(20, 20, 16), (5, 3, 3), (2, 4, 2)])
def test_a_film_shows_one_batch_of_16_at_most_and_no_padding(program, run_folder, n, batch_size, shown):
    flags = ("-n", n, "--batch-size", batch_size, "--steps", 1, "--gif")
    assert program("generate", "ddim", "--ckpt", run_folder, *flags)[0] == 0
    with Image.open("out/ddim/denoising.gif") as film:
        grid = pictures.grid(torch.zeros(shown, 3, 16, 16, dtype=torch.uint8))
        assert film.size == (grid.shape[2], grid.shape[1])


def test_a_folder_that_cannot_be_written_in_is_named_with_what_to_do(program, run_folder, monkeypatch):
    def denied(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("files.tempfile.mkstemp", denied)
    code, _, err = program("generate", "ddim", "--ckpt", run_folder, "-n", 1, "--out", "o")
    assert code == 2 and err == "error: cannot write in o: Permission denied; choose another folder with --out DIR\n"


def test_the_evaluations_said_are_the_most_that_a_picture_took(program, run_folder, monkeypatch):
    """`ode` takes another number of steps in each batch; here the first is the longest."""
    counts = iter((9, 5))

    def solver(denoise, schedule, x, **_):
        """For the help."""
        for _ in range(next(counts)):
            x0, _ = denoise(x, 1)
        yield Step(0, x, x0)

    monkeypatch.setitem(generate.SAMPLERS, "ode", solver)
    code, out, _ = program("generate", "ode", "--ckpt", run_folder, "-n", 2, "--batch-size", 1)
    assert code == 0 and "\n9 network evaluations a picture\n" in out
    assert json.loads(Path("out/ode/settings.json").read_text())["evaluations"] == 9


@pytest.mark.parametrize("name", SAMPLERS)
def test_by_default_a_sampler_does_what_generate_tells_it(name):
    """Lessons and the reader call it without options, and are to see the same pictures."""
    own = inspect.signature(SAMPLERS[name]).parameters
    told = sampling.defaults(name, Sample().eta)
    for option in told.keys() - {"spacing", "rho"}:
        assert own[option].default == told[option]
    if "rho" in told:
        assert inspect.signature(spaced_rho).parameters["rho"].default == told["rho"]


def test_spacing_rho_and_tol_change_the_pictures(program, run_folder):
    def picture(*flags):
        assert program("generate", *flags, "--ckpt", run_folder, "-n", 1, "--steps", 6)[0] == 0
        return pixels(f"out/{flags[0]}/00000.png")

    assert (picture("dpmpp") != picture("dpmpp", "--spacing", "time")).any()
    assert (picture("ddim") != picture("ddim", "--spacing", "logsnr")).any()
    assert (picture("heun") != picture("heun", "--rho", 1)).any()
    assert (picture("pc") != picture("pc", "--snr", 0.3)).any()
    assert (picture("ode") != picture("ode", "--tol", 1)).any()


@pytest.mark.parametrize("steps", [1, 50])
@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name != "ode"])  # slow: it stops at each
def test_one_step_and_T_steps_work(program, run_folder, sampler, steps):
    assert program("generate", sampler, "--ckpt", run_folder, "-n", 1, "--steps", steps)[0] == 0


def test_processes_put_their_shares_together(program, run_folder, tmp_path, capsys):
    """The pictures in order, and the most evaluations that one of them took anywhere: `ode` chooses its own."""

    class Two(Processes):
        def gather(self, thing):
            other = ({1: torch.full((1, 3, 16, 16), 7, dtype=torch.uint8)}, 99) if isinstance(thing, tuple) else thing
            return [thing, other]

    args = generate.parser().parse_args(["ddim", "-n", "2", "--batch-size", "1", "--steps", "2", "--out", "o"])
    program("generate", "ddim", "--ckpt", run_folder, "-n", 1, "--batch-size", 1, "--steps", 2, "--out", "alone")
    generate.generate(args, run_folder / "best.pth", Two(0, 2, torch.device("cpu")))
    first, second = (pictures.load_png(Path("o") / name) for name in ("00000.png", "00001.png"))
    assert torch.equal(first, pictures.load_png(Path("alone/00000.png"))) and (second == 7).all()
    assert json.loads(Path("o/settings.json").read_text())["evaluations"] == 99


def test_labels_and_guidance_without_classes_are_refused(program, tmp_path):
    pictures_in(tmp_path / "pictures")
    assert program("main", *SMOKE, "--data", "pictures", "--train.steps", 2)[0] == 0
    for flags in (["--guidance", "2"], ["--label", "3"]):
        code, _, err = program("generate", "ddim", *flags)
        assert code == 2 and err.count("\n") == 1 and flags[0] in err and "no classes" in err
        assert "ckpt/smoke/best.pth" in err  # the newest run may not be the one meant


def test_weights_that_are_not_finite_are_refused(program, run_folder, tmp_path):
    state = torch.load(run_folder / "best.pth", weights_only=True)
    state["ema"]["head.bias"].fill_(float("nan"))
    torch.save(state, tmp_path / "nan.pth")
    code, _, err = program("generate", "ddim", "--ckpt", "nan.pth", "-n", 1)
    assert code == 2 and err.count("\n") == 1 and "not finite" in err


def test_an_exported_checkpoint_is_small_and_draws_the_same_pictures(program, run_folder, tmp_path):
    code, out, _ = program("main", "--out", run_folder, "--export", "small.pth")
    assert code == 0 and hashlib.sha256((tmp_path / "small.pth").read_bytes()).hexdigest() in out
    assert (tmp_path / "small.pth").stat().st_size < 0.5 * (run_folder / "best.pth").stat().st_size
    shots = []
    for path in (run_folder, "small.pth"):
        assert program("generate", "ddim", "--ckpt", path, "-n", 2, "--label", "zigzag")[0] == 0
        shots.append(pixels("out/ddim/00001.png"))
    assert abs(shots[0] - shots[1]).max() <= 2
    assert checkpoint.load("small.pth")[1]["step"] == checkpoint.load(run_folder / "best.pth")[1]["step"]
    code, _, err = program("generate", "ddim", "--ckpt", "small.pth", "--weights", "raw")
    assert code == 2 and "averaged weights only" in err
    code, _, err = program("main", "--out", "nowhere", "--export", "other.pth")
    assert code == 2 and "nowhere/best.pth" in err


def test_without_a_run_the_shipped_checkpoint_is_used_and_this_is_said(program):
    code, out, _ = program("generate", "ddim", "-n", 1, "--steps", 2, "--batch-size", 1)
    assert code == 0 and "shipped with this program" in out and "assets/textiles.pth" in out
    assert pixels("out/ddim/00000.png").shape == (32, 32, 3)


def test_the_run_cannot_lie_in_its_own_data(program, tmp_path):
    pictures_in(tmp_path / "pictures")
    code, _, err = program("main", *SMOKE, "--data", "pictures", "--out", "pictures/run")
    assert code == 2 and "lies in the data" in err and not (tmp_path / "pictures/run").exists()


@pytest.mark.parametrize("flag", ["--data", "--out"])
def test_a_folder_that_no_path_leads_to_is_refused_in_one_line(program, tmp_path, flag):
    pictures_in(tmp_path / "pictures")
    (tmp_path / "one").symlink_to("two")
    (tmp_path / "two").symlink_to("one")
    for path in ("one", "~nobody-of-this-name/pictures"):
        code, _, err = program("main", *SMOKE, "--train.steps", 1, "--data", "pictures", flag, path)
        if (flag, path[0]) != ("--out", "~"):  # a fine name for a folder
            assert code == 2 and path in err and err.count("\n") == 1, err


def test_a_run_may_be_called_as_its_source_is(program):
    """A name of a source is never the folder of that name."""
    assert program("main", *SMOKE, "--train.steps", 4, "--out", "textiles")[0] == 0
    assert program("main", "--resume", "--out", "textiles", "--train.steps", 5)[0] == 0
    assert program("main", *SMOKE, "--train.steps", 4, "--out", "textiles/again")[0] == 0


@pytest.mark.parametrize("name", ["best.pth", "last.pth", "config.json"])
def test_export_replaces_nothing(program, run_folder, name):
    before = (run_folder / name).read_bytes()
    code, _, err = program("main", "--out", run_folder, "--export", run_folder / name)
    assert code == 2 and "choose another name" in err and (run_folder / name).read_bytes() == before


@pytest.mark.parametrize("left", ["best.pth", "last.pth"])
def test_a_folder_with_any_checkpoint_is_not_trained_into(program, run_folder, tmp_path, left):
    (tmp_path / "run").mkdir()
    shutil.copy(run_folder / left, tmp_path / "run")
    code, _, err = program("main", *SMOKE, "--out", "run")
    assert code == 2 and "choose another folder with --out" in err
    assert [p.name for p in (tmp_path / "run").iterdir()] == [left]


@pytest.mark.parametrize("name", ["config.json", "metrics.csv", "loss.png", "samples/data.png"])
def test_what_no_run_has_written_is_not_replaced(program, tmp_path, name):
    """Nor is --resume sent on to a start that would be refused."""
    (tmp_path / "run/samples").mkdir(parents=True) if "/" in name else (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).write_text("mine")
    for flags in (SMOKE, ["--resume"]):
        code, _, err = program("main", *flags, "--out", "run")
        assert code == 2 and err.startswith(
            f"error: run/{name.split('/')[0]} was not written by a run, and would be replaced"
        ), err
    assert [p.read_text() for p in (tmp_path / "run").rglob("*") if p.is_file()] == ["mine"]


def test_a_run_that_was_killed_before_its_first_checkpoint_can_be_started_again(program, tmp_path):
    assert program("main", *SMOKE, "--train.steps", 1, "--out", "run")[0] == 0
    for left in ("last.pth", "best.pth"):
        (tmp_path / "run" / left).unlink()
    assert program("main", *SMOKE, "--train.steps", 1, "--out", "run")[0] == 0


@pytest.mark.parametrize(
    "flags", [["--resume"], ["--verify"], ["--dry-run"], ["--compile"], ["--data", "x"], ["--train.max_skips", "5"]]
)
def test_export_does_nothing_else(program, run_folder, flags):
    code, _, err = program("main", "--out", run_folder, "--export", "small.pth", *flags)
    assert code == 2 and err.endswith(f"leave out {flags[0]}\n") and not Path("small.pth").exists()


def test_export_of_a_run_that_is_not_there_says_what_to_do(program):
    code, _, err = program("main", "--export", "small.pth")
    assert code == 2 and "no ckpt/textiles/best.pth yet: train first" in err


@pytest.mark.parametrize(
    ("where", "said"), [("16,8", "attention at 16, 8"), ("8", "attention at 8"), ("7", "attention at no level")]
)
def test_a_run_says_where_its_network_has_attention(program, where, said):
    """A resolution that the network does not have asks for nothing; the network is looked at, not the config."""
    code, out, _ = program("main", *SMOKE, "--train.steps", 1, "--model.attention_resolutions", where, "--out", "run")
    assert code == 0 and f"12 classes, {said}\n" in out
    model, _, _ = checkpoint.load_model("run/last.pth", "cpu")
    outside = [block.attn for level in model.encoder for block in level if isinstance(block.attn, Attention)]
    assert len(outside) == len([r for r in where.split(",") if r != "7"])


def test_a_device_that_is_not_there_is_what_is_said_first(program, run_folder):
    """Whatever else is wrong: without it nothing else can be put right."""
    code, _, err = program("main", *SMOKE, "--out", run_folder, "--device", "cuda:99")
    assert code == 2 and "cuda:99" in err and "holds a run" not in err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--train.steps", 3, "--train.epochs", 1), "--train.epochs"),
        (("--data", "a", "--data.source", "b"), "--data.source"),
    ],
)
def test_two_flags_for_one_thing_are_refused(program, flags, said):
    code, _, err = program("main", *SMOKE, *flags)
    assert code == 2 and said in err and "leave one of the two out" in err


@pytest.mark.parametrize(
    "argv",
    [("generate", "ddim"), ("explore", "forward"), ("explore", "app"), ("edit", "img2img"), ("evaluate", "speed")],
    ids=" ".join,
)
def test_every_program_takes_the_device_and_the_preset_asked_for(program, run_folder, monkeypatch, argv):
    asked, given, there = [], [], torch.device("meta")
    monkeypatch.setattr(machine, "choose_device", lambda name, local=0: asked.append(name) or there)
    monkeypatch.setattr(checkpoint, "load_model", lambda path, device, *_: given.append(torch.device(device)) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        program(*argv, "--ckpt", run_folder, "--device", "over there")
    assert (asked, given) == (["over there"], [there])
    code, _, err = program(*argv, "--preset", "nothing")
    assert code == 2 and err.startswith("error: --preset nothing: unknown")


def test_the_grid_holds_the_pictures_in_their_order(program, run_folder):
    flags = ("-n", 5, "--batch-size", 5, "--steps", 1, "--upscale", 2)
    assert program("generate", "ddim", "--ckpt", run_folder, *flags)[0] == 0
    images = torch.stack([pictures.load_png(p) for p in pngs("out/ddim")])
    assert torch.equal(pictures.load_png("out/ddim/grid.png"), pictures.grid(images))
