"""Nothing is lost: each fault is injected for real, and costs at most one line.  docs/reliability.md lists them all."""

import errno
import json
import math
import os
import pty
import random
import re
import resource
import signal
import subprocess
import sys
import time
from functools import partial, wraps
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import processes
import resume
from benchmarks import kill
from config import PRESETS, UserError, field_types
from dataset import pictures, sources
from diffusion import samplers
from models import checkpoint
from models.unet import UNet
from outputs import replaced
from painter import Painter
from trainer import Trainer

ROOT = Path(__file__).resolve().parent.parent
SMOKE = ("--preset", "smoke")


def one_line(err, *words):
    assert err.startswith("error: ") and err.count("\n") == 1 and "Traceback" not in err, err
    for word in words:
        assert word in err, err


def tree(folder):
    return {p.relative_to(folder): p.read_bytes() for p in sorted(Path(folder).rglob("*")) if p.is_file()}


# ---------------------------------------------------------------- kill


def test_a_training_killed_five_times_equals_one_left_in_peace(tmp_path):
    found = kill.torment(tmp_path, kills=5)
    assert found["kills survived"] == 5
    assert found["differences"] == [] and found["steps doubled or missing in metrics.csv"] == 0
    assert found["temp files left"] == [] and found["checkpoints lost"] == 0 and found["bytes lost"] == 0


def test_the_comparison_sees_a_single_bit():
    a = {"w": torch.zeros(3), "rows": [{"loss": 1.0, "images_per_s": 3.0}]}
    assert kill.differences(a, {"w": torch.zeros(3), "rows": [{"loss": 1.0, "images_per_s": 4.0}]}) == []
    assert kill.differences(a, {"w": torch.tensor([0.0, 1e-45, 0.0]), "rows": a["rows"]}) == [".w"]
    assert kill.differences(a, {"w": a["w"], "rows": []}) == [".rows"]


@pytest.mark.parametrize("lost", ["metrics.csv", "loss.png", "samples/strips.gif"])
def test_a_kill_after_the_last_checkpoint_loses_no_row_and_no_picture(program, tmp_path, lost):
    """last.pth is written first; whoever resumes a finished run gets what is drawn from it."""
    assert program("main", *SMOKE)[0] == 0
    path = tmp_path / "ckpt/smoke" / lost
    before = path.read_bytes()
    path.unlink()
    path.with_name(f".{path.name}.x.tmp").write_text("half")
    code, _, err = program("main", *SMOKE, "--resume")
    assert code == 2 and "is finished" in err
    assert path.read_bytes() == before and not list(tmp_path.rglob("*.tmp"))


# ---------------------------------------------------------------- the disk


@pytest.mark.parametrize("limit", [1, 2_000, 30_000, 90_000])
def test_a_disk_that_fills_up_at_any_size_costs_one_line_and_no_checkpoint(program, tmp_path, limit):
    """The operating system itself refuses to write files beyond `limit` bytes: torch.save fails half-way."""
    assert program("main", *SMOKE, "--train.steps", 4)[0] == 0
    folder = tmp_path / "ckpt/smoke"
    good = (folder / "last.pth").read_bytes(), (folder / "best.pth").read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        code, _, err = program("main", *SMOKE, "--resume", "--train.steps", 8)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert code == 2
    one_line(err, "cannot write ckpt/smoke/", "untouched")
    assert good == ((folder / "last.pth").read_bytes(), (folder / "best.pth").read_bytes())
    assert not list(tmp_path.rglob("*.tmp"))
    assert program("main", *SMOKE, "--resume", "--train.steps", 8)[0] == 0


@pytest.mark.parametrize("name", ["last.pth", "best.pth", "metrics.csv", "samples", "config.json", "loss.png"])
def test_something_in_the_way_of_a_file_costs_one_line(program, tmp_path, name):
    """What a run folder without the right to write is to anyone but root: a name that cannot be written."""
    if name == "samples":
        (tmp_path / "run").mkdir()
        (tmp_path / "run/samples").write_text("a file")
    else:
        (tmp_path / "run" / name / "full").mkdir(parents=True)
    code, _, err = program("main", *SMOKE, "--out", "run")
    assert code == 2
    one_line(err, "run")
    assert not list(tmp_path.rglob("*.tmp"))


def test_pictures_that_cannot_be_written_leave_the_old_ones(program, run_folder, tmp_path):
    flags = ["ddim", "--ckpt", run_folder, "-n", 3, "--steps", 2]
    assert program("generate", *flags)[0] == 0
    before = tree(tmp_path / "out")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, hard))
    try:
        code, _, err = program("generate", *flags, "--seed", 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert code == 2
    one_line(err, "cannot write")
    assert set(tree(tmp_path / "out")) <= set(before)


# ---------------------------------------------------------------- NaN, fp16


def test_fp16_scales_the_loss_and_the_scale_is_saved_and_restored(program, tmp_path):
    flags = (*SMOKE, "--precision", "fp16")
    assert program("main", *flags, "--out", "whole")[0] == 0
    assert program("main", *flags, "--out", "halves", "--train.steps", 4)[0] == 0
    assert program("main", *flags, "--out", "halves", "--resume", "--train.steps", 8)[0] == 0
    whole, halves = (checkpoint.load(tmp_path / f / "last.pth")[1] for f in ("whole", "halves"))
    assert whole["scaler"]["scale"] > 1
    assert kill.differences({k: v for k, v in whole.items() if k != "config"},
                            {k: v for k, v in halves.items() if k != "config"}) == []  # fmt: skip


def test_weights_that_are_not_finite_never_replace_a_good_checkpoint(tmp_path):
    model = UNet(PRESETS["smoke"].model, 3, (16, 16))
    good = {k: v.clone() for k, v in model.state_dict().items()}
    checkpoint.save(tmp_path / "last.pth", PRESETS["smoke"], model=good, ema=good, step=1)
    before = (tmp_path / "last.pth").read_bytes()
    for where in ("model", "ema"):
        bad = {**good, "head.bias": good["head.bias"] * float("nan")}
        with pytest.raises(UserError, match=r"head\.bias is no longer finite"):
            checkpoint.save(tmp_path / "last.pth", PRESETS["smoke"], **{"model": good, "ema": good, where: bad}, step=2)
    assert (tmp_path / "last.pth").read_bytes() == before


# ---------------------------------------------------------------- checkpoints are data


def test_a_checkpoint_in_the_format_of_old_torch_loads(run_folder, tmp_path):
    state = torch.load(run_folder / "last.pth", weights_only=True)
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert kill.differences(checkpoint.load(tmp_path / "old.pth")[1], state) == []


def test_a_checkpoint_saved_compiled_loads_plainly(program, run_folder, monkeypatch, tmp_path):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    assert program("main", *SMOKE, "--train.steps", 2, "--compile")[0] == 0
    compiled, plain = (checkpoint.load(f / "last.pth")[1] for f in (tmp_path / "ckpt/smoke", run_folder))
    assert list(compiled["model"]) == list(plain["model"]) and list(compiled["ema"]) == list(plain["ema"])
    monkeypatch.undo()
    assert checkpoint.load_model(tmp_path / "ckpt/smoke/last.pth")[1].name == "smoke"


JUNK = [None, True, -1, 0, 3, 10**30, 1.5, float("nan"), "", "x", "\n\x1b[31m", [], [1, 2], {}, {1: 2}, (), (0, 0),
        torch.zeros(0), torch.zeros(3), torch.ones(2, 2, dtype=int), torch.zeros(1, dtype=torch.cfloat)]  # fmt: skip


def places(state, path=()):
    """The path of every entry of a nested state; one tensor of each dictionary stands for the others."""
    if isinstance(state, dict):
        for number, (key, value) in enumerate(state.items()):
            if number < 12 or not isinstance(value, torch.Tensor):
                yield (*path, key)
                yield from places(value, (*path, key))
    elif isinstance(state, list) and state:
        yield (*path, 0)
        yield from places(state[0], (*path, 0))


def changed(state, path, value):
    """A copy of `state` with another value at `path`."""
    if not path:
        return value
    copy = dict(state) if isinstance(state, dict) else list(state)
    copy[path[0]] = changed(state[path[0]], path[1:], value)
    return copy


def test_a_checkpoint_with_any_one_entry_replaced_by_junk_works_or_is_refused_in_one_line(run_folder, tmp_path):
    state, config = torch.load(run_folder / "last.pth", weights_only=True), PRESETS["smoke"]
    images = sources.load("textiles", size=config.data.size, channels=3, count=config.data.count)
    trainer = Trainer(config, images, *sources.split(images, 0.25, 0), tmp_path, processes.start("cpu"))
    rng, path, refused = random.Random(0), tmp_path / "last.pth", 0
    spots = rng.sample(list(places(state)), 60)
    for spot in spots:
        torch.save(changed(state, spot, rng.choice(JUNK)), path)
        for use in (lambda: checkpoint.load_model(path), lambda: resume.go_on(trainer, checkpoint.load(path)[1])):
            try:
                use()
            except UserError as error:  # anything else would be a traceback
                assert str(path) in str(error) and len(str(error)) < 400
                refused += 1
    assert 40 < refused < 2 * len(spots)


# ---------------------------------------------------------------- images


def test_a_folder_of_every_bad_image_trains_on_the_good_ones_and_lists_the_others(program, tmp_path):
    data = tmp_path / "data"
    noise = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    for name in ("a/same.png", "b/same.png"):
        (data / name).parent.mkdir(parents=True)
        Image.fromarray(noise).save(data / name)
    Image.new("RGB", (1, 1), "red").save(data / "a/one.png")
    Image.new("CMYK", (9, 9)).save(data / "a/cmyk.jpg")
    Image.new("L", (20_000, 1)).save(data / "a/wide.png")
    Image.fromarray(noise).save(data / "a/moves.gif", save_all=True, append_images=[Image.fromarray(255 - noise)])
    (data / "a/moves.gif").rename(data / "a/moves.png")
    Image.fromarray(noise).save(data / "a/wrong.bmp", format="JPEG")
    (data / "b/empty.png").touch()
    (data / "b/cut.png").write_bytes((data / "a/same.png").read_bytes()[:200])
    (data / "b/text.jpg").write_text("no picture")
    (data / "b/gone.webp").symlink_to("nowhere")
    (data / "b/loop").symlink_to(data)
    (data / "b/self.png").symlink_to("self.png")
    before = tree(data)
    code, out, err = program("main", *SMOKE, "--data", "data", "--verify")
    assert code == 0 and err == "" and "7 usable, 5 skipped" in out
    for name in ("b/cut.png", "b/empty.png", "b/gone.webp", "b/self.png", "b/text.jpg"):
        assert f"skipped   {name}: " in out
    assert program("main", *SMOKE, "--data", "data", "--train.steps", 2)[0] == 0
    assert tree(data) == before
    assert {p.name for p in tmp_path.iterdir()} == {"data", "cache", "ckpt", "out"}


def test_a_zip_with_a_damaged_directory_is_one_line(program, tmp_path):
    import shutil

    (tmp_path / "pets").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "pets/a.png")
    whole = Path(shutil.make_archive(str(tmp_path / "pets"), "zip", tmp_path / "pets")).read_bytes()
    for place in range(len(whole) - 70, len(whole), 3):  # the directory is at the end
        (tmp_path / "b.zip").write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        code, _, err = program("main", *SMOKE, "--data", "b.zip", "--verify")
        assert code in (0, 2)
        if code:
            one_line(err, "b.zip")


def test_the_cache_of_a_killed_reader_does_not_stay(program, tmp_path):
    (tmp_path / "pets").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "pets/a.png")
    assert program("main", *SMOKE, "--data", "pets", "--verify")[0] == 0
    (pixels,) = (tmp_path / "cache").rglob("*.npy")
    dead = pixels.with_name(f"{pixels.name}.{2**22 + 1}.tmp")  # no process has such a number
    dead.write_text("half")
    pixels.unlink()
    assert program("main", *SMOKE, "--data", "pets", "--verify")[0] == 0
    assert not dead.exists()


# ---------------------------------------------------------------- small and odd


@pytest.mark.parametrize(
    "flags",
    [
        ["--data.count", 1],
        ["--data.count", 2],
        ["--data.count", 3, "--train.batch_size", 64],
        ["--data.count", 7, "--train.batch_size", 3, "--train.accumulate", 3],
        ["--data.val_fraction", "1e-9"],
        ["--data.val_fraction", "0.999999"],
        ["--train.val_images", 4, "--data.count", 200],
        ["--train.eval_every", 1000],
        ["--train.warmup_steps", 1000],
        ["--diffusion.T", 1, "--sample.steps", 1],
        ["--diffusion.T", 50, "--sample.steps", 50],
        ["--sample.n", 1],
        ["--sample.n", 5, "--sample.eta", 1],
    ],
    ids=lambda f: " ".join(map(str, f)),
)
def test_small_and_odd_runs_work(program, tmp_path, flags):
    code, _, err = program("main", *SMOKE, "--train.steps", 2, *flags)
    assert code == 0 and all(
        line.startswith(("warning: the schedule", "warning: --train.warmup")) for line in err.splitlines()
    ), err
    assert program("generate", "ddpm", "-n", 3, "--batch-size", 2)[0] == 0
    assert len(list(tmp_path.glob("out/ddpm/0*.png"))) == 3


# ---------------------------------------------------------------- two processes


def test_a_second_process_is_refused_and_a_killed_first_one_leaves_no_lock(program, tmp_path):
    first = kill.start(tmp_path / "run", steps=100_000, resume=False)
    try:
        code, _, err = program("main", *SMOKE, "--out", "run")
        assert code == 2
        one_line(err, "another process is training here")
    finally:
        first.kill()
        first.communicate()
    flags = ["--resume"] if (tmp_path / "run/last.pth").exists() else []
    done = checkpoint.load(tmp_path / "run/last.pth")[1]["step"] if flags else 0
    assert program("main", *SMOKE, "--out", "run", *flags, "--train.steps", done + 2)[0] == 0


@pytest.mark.parametrize("reason", ["no locks", "Windows"])
def test_a_run_folder_that_cannot_be_locked_is_one_line(program, monkeypatch, reason):
    """As on some network file systems."""
    import fcntl

    def flock(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    if reason == "Windows":
        monkeypatch.setitem(sys.modules, "fcntl", None)
    monkeypatch.setattr(fcntl, "flock", flock)
    code, _, err = program("main", *SMOKE, "--out", "run")
    assert code == 2
    one_line(err, *(("on Windows use WSL",) if reason == "Windows" else ("run cannot be locked: ", "--out DIR")))


def test_the_programs_start_where_there_is_no_module_resource():
    start = "import sys; sys.modules['resource'] = sys.modules['fcntl'] = None; import main, generate"
    done = subprocess.run([sys.executable, "-c", start], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_run_that_another_process_finished_meanwhile_is_not_overwritten(program, tmp_path, monkeypatch):
    """Between the first look at the run folder and the lock, while the data is read."""
    import main

    real = main.sources.load

    def load(*args, **options):
        monkeypatch.setattr(main.sources, "load", real)
        assert main.main([*SMOKE, "--out", "run"]) == 0  # the other process
        return real(*args, **options)

    monkeypatch.setattr(main.sources, "load", load)
    code, _, err = program("main", *SMOKE, "--out", "run", "--train.steps", 2)
    assert code == 2
    one_line(err, "holds a run")
    assert checkpoint.load(tmp_path / "run/last.pth")[1]["step"] == 8


def test_a_run_that_another_process_resumed_meanwhile_is_not_set_back(program, tmp_path, monkeypatch):
    import main

    assert program("main", *SMOKE, "--out", "run", "--train.steps", 4)[0] == 0
    real = main.sources.load

    def load(*args, **options):
        monkeypatch.setattr(main.sources, "load", real)
        assert main.main(["--resume", "--out", "run", "--train.steps", "8"]) == 0  # the other process
        return real(*args, **options)

    monkeypatch.setattr(main.sources, "load", load)
    code, _, err = program("main", "--resume", "--out", "run", "--train.steps", 6)
    assert code == 2
    one_line(err, "another process has gone on")
    assert checkpoint.load(tmp_path / "run/last.pth")[1]["step"] == 8


# ---------------------------------------------------------------- interrupt


def test_a_terminal_that_is_closed_costs_nothing(tmp_path):
    """Whatever is written to it afterwards would fail."""
    pid, terminal = pty.fork()
    if pid == 0:
        flags = ("--train.steps", "100000", "--train.eval_every", "50", "--device", "cpu", "--out", str(tmp_path))
        os.execv(sys.executable, [sys.executable, str(ROOT / "main.py"), *SMOKE, *flags])
    said = b""
    while b"val " not in said:
        said += os.read(terminal, 4096)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 130
    assert checkpoint.load(tmp_path / "last.pth")[1]["step"] > 50


@pytest.mark.parametrize(("number", "code"), [(errno.EIO, 130), (errno.ENOSPC, 2)])
def test_a_terminal_that_is_gone_may_be_noticed_before_its_signal_comes(program, tmp_path, monkeypatch, number, code):
    def report(self, bar, row, best):
        raise OSError(number, os.strerror(number))

    silenced = []
    monkeypatch.setattr(Trainer, "_report", report)
    monkeypatch.setattr(Trainer, "_hang_up", lambda self: silenced.append(self))
    found, _, err = program("main", *SMOKE)
    assert found == code and len(silenced) == (code == 130)
    assert checkpoint.load(tmp_path / "ckpt/smoke/last.pth")[1]["step"] > 0 and "Traceback" not in err


def test_a_training_that_is_to_outlive_its_terminal_does():
    """As under nohup, which ignores the signal for it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Trainer._signals(SimpleNamespace(stop=False)):
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_ctrl_c_while_generating_keeps_the_pictures_of_the_last_call(program, run_folder, tmp_path, monkeypatch):
    flags = ["ddim", "--ckpt", run_folder, "-n", 4, "--steps", 5]
    assert program("generate", *flags)[0] == 0
    before, real = tree(tmp_path / "out"), samplers.SAMPLERS["ddim"]

    @wraps(real)
    def interrupted(*args, **options):
        for i, step in enumerate(real(*args, **options)):
            if i == 3:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(1)
            yield step

    monkeypatch.setitem(samplers.SAMPLERS, "ddim", interrupted)
    code, _, err = program("generate", *flags, "--seed", 1)
    assert code == 130 and "the same command starts again" in err and "Traceback" not in err
    assert tree(tmp_path / "out") == before


def test_ctrl_c_while_pictures_are_written_leaves_whole_files_and_the_next_call_exactly_n(
    program, run_folder, tmp_path, monkeypatch
):
    real, written = pictures.save_png, []

    def save_png(path, image):
        real(path, image)
        written.append(path)
        if len(written) == 3:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)

    monkeypatch.setattr(pictures, "save_png", save_png)
    flags = ["ddim", "--ckpt", run_folder, "--steps", 2]
    assert program("generate", *flags, "-n", 6)[0] == 130
    assert not list(tmp_path.rglob("*.tmp"))
    for png in tmp_path.rglob("*.png"):
        with Image.open(png) as image:
            image.load()
    assert program("generate", *flags, "-n", 1)[0] == 0
    assert sorted(p.name for p in (tmp_path / "out/ddim").iterdir()) == ["00000.png", "grid.png", "settings.json"]


@pytest.mark.parametrize("command", [("generate", "ddim"), ("edit", "img2img")])
@pytest.mark.parametrize("full_at", [1, 3, 5])
def test_a_disk_that_fills_up_while_pictures_are_written_keeps_those_of_the_last_call(
    program, run_folder, tmp_path, monkeypatch, command, full_at
):
    flags = (*command, "--ckpt", run_folder, "-n", 4, "--steps", 2)
    assert program(*flags)[0] == 0
    before, real, written = tree(tmp_path / "out"), pictures.save_png, []

    def save_png(path, image):
        written.append(path)
        if len(written) == full_at:
            raise OSError(28, "No space left on device")
        real(path, image)

    monkeypatch.setattr(pictures, "save_png", save_png)
    code, _, err = program(*flags, "--seed", 1)
    assert code == 2 and "No space left on device; what was there before is untouched" in err
    assert tree(tmp_path / "out") == before
    assert program(*flags, "--seed", 1)[0] == 0 and tree(tmp_path / "out") != before


def test_stopped_while_pictures_are_moved_into_place_the_next_call_still_knows_which_are_its_own(
    program, run_folder, tmp_path, monkeypatch
):
    """The settings come first: they cover all that follows."""
    real, moved = os.replace, []

    def replace(source, target):
        if Path(target).parent == Path("out/ddim"):
            moved.append(target)
            if len(moved) == 6:
                raise KeyboardInterrupt
        real(source, target)

    flags = ("generate", "ddim", "--ckpt", run_folder, "--steps", 1, "-n")
    assert program(*flags, 1)[0] == 0
    with monkeypatch.context() as m:
        m.setattr(os, "replace", replace)
        assert program(*flags, 8)[0] == 130
    assert len(list((tmp_path / "out/ddim").glob("0*.png"))) > 1
    assert program(*flags, 1)[0] == 0
    assert sorted(p.name for p in (tmp_path / "out/ddim").iterdir()) == ["00000.png", "grid.png", "settings.json"]


def test_what_a_call_that_was_killed_while_writing_has_left_the_next_one_clears(program, run_folder, tmp_path):
    flags = ("generate", "ddim", "--ckpt", run_folder, "-n", 1, "--steps", 1)
    assert program(*flags)[0] == 0
    dead = subprocess.Popen(["true"])
    dead.wait()
    writing = f".results.abc.{os.getpid()}.tmp"  # by a process that lives
    for name in (f".results.abc.{dead.pid}.tmp", writing, ".mine.tmp"):
        (tmp_path / "out/ddim" / name).mkdir()
        (tmp_path / "out/ddim" / name / "00000.png").write_text("half")
    assert program(*flags)[0] == 0
    left = sorted(p.name for p in (tmp_path / "out/ddim").iterdir())
    assert left == [".mine.tmp", writing, "00000.png", "grid.png", "settings.json"]


def test_results_are_written_on_the_disk_of_their_folder_under_a_name_that_the_next_call_knows(tmp_path):
    with replaced(tmp_path, {}, set) as new:
        assert new.parent == tmp_path and new.match(f".results.*.{os.getpid()}.tmp")


@pytest.mark.parametrize("command", [("generate", "ddim"), ("edit", "img2img"), ("evaluate", "speed")])
def test_a_checkpoint_that_is_replaced_while_pictures_are_drawn_costs_nothing(
    program, run_folder, tmp_path, monkeypatch, command
):
    """A training does that; what is noted is the one that drew them."""
    real, path = Painter.open, tmp_path / "one.pth"
    path.write_bytes((run_folder / "best.pth").read_bytes())
    digest = checkpoint.digest(path)

    def open_(*args, **options):
        painter = real(*args, **options)
        path.unlink()
        return painter

    monkeypatch.setattr(Painter, "open", open_)
    flags = ("--samplers", "ddim") if command[0] == "evaluate" else ()
    code, _, err = program(*command, "--ckpt", path, "-n", 1, "--steps", 2, "--out", "o", *flags)
    assert code == 0, err
    noted = json.loads((tmp_path / "o" / ("speed.json" if flags else "settings.json")).read_text())
    assert noted.get("protocol", noted)["checkpoint_sha256"] == digest


def test_at_no_moment_a_folder_of_pictures_is_without_its_settings(program, run_folder, monkeypatch):
    """Killed then, the next call would take the pictures for the user's."""
    flags = ("generate", "ddim", "--ckpt", run_folder, "--steps", 1, "--out", "out")
    assert program(*flags, "-n", 3)[0] == 0
    remove = Path.unlink

    def unlink(self, **options):
        assert self != Path("out/settings.json")
        remove(self, **options)

    monkeypatch.setattr(Path, "unlink", unlink)
    assert program(*flags, "-n", 1)[0] == 0


def test_the_settings_of_another_program_cost_no_picture(program, run_folder, tmp_path):
    (tmp_path / "out/ddim").mkdir(parents=True)
    mine = ["2024.png", "00077.png", "3.png", "grid.png"]
    for text in ('{"theme": "dark"}', "{", "[]", '{"n": 9, "sampler": "mine"}', '{"n": "x", "sampler": "ddim"}'):
        for name in mine:
            (tmp_path / "out/ddim" / name).write_text("mine")
        (tmp_path / "out/ddim/settings.json").write_text(text)
        before = tree(tmp_path / "out")
        code, _, err = program("generate", "ddim", "--ckpt", run_folder, "-n", 1, "--steps", 1)
        assert code == 2 and tree(tmp_path / "out") == before
        one_line(err, "out/ddim/grid.png", "--out")
    for name in ("grid.png", "settings.json"):
        (tmp_path / "out/ddim" / name).unlink()
    for _ in "12":
        assert program("generate", "ddim", "--ckpt", run_folder, "-n", 1, "--steps", 1)[0] == 0
        assert all((tmp_path / "out/ddim" / name).read_text() == "mine" for name in mine[:3])


# ---------------------------------------------------------------- command lines


VALUES = ["", " ", "0", "-1", "1", "2", "3", "1e999", "nan", "-inf", "9" * 30, "1,2", ",", "1,2,3,4", "0x10", "1_0"]
VALUES += ["½", "²", "٣", "\x1b[31m", "é\udcff", "true", "None", "none", "../..", "16x", "16x16", "1.5", "linear", "v"]


def test_no_command_line_of_main_ends_in_a_traceback(program, tmp_path):
    """Any one or two fields with any value, as far as --verify goes: every setting is checked, the data is read."""
    rng, fields, codes = random.Random(0), [*field_types(), "data", "preset", "device", "out", "precision"], []
    for _ in range(400):
        flags = [
            part for name in rng.sample(fields, rng.choice([1, 1, 2])) for part in (f"--{name}", rng.choice(VALUES))
        ]
        code, _, err = program("main", *SMOKE, "--verify", *flags)
        assert code in (0, 2), flags
        if code:
            one_line(err)
        codes.append(code)
    assert codes.count(2) > 100 and codes.count(0) > 20


def test_no_command_line_of_generate_ends_in_a_traceback(program, run_folder, tmp_path):
    rng, codes = random.Random(0), []
    fields = ["-n", "--batch-size", "--steps", "--label", "--guidance", "--eta", "--seed", "--upscale", "--out",
              "--ckpt", "--preset", "--weights", "--variance", "--precision", "--device"]  # fmt: skip
    for _ in range(150):
        flags = [part for name in rng.sample(fields, rng.choice([1, 1, 2])) for part in (name, rng.choice(VALUES))]
        small = ["-n", "1", "--steps", "1", "--batch-size", "1", "--ckpt", run_folder]
        code, _, err = program("generate", rng.choice(["ddim", "ddpm"]), *small, *flags)
        assert code in (0, 2), flags
        if code:
            one_line(err)
        codes.append(code)
    assert codes.count(2) > 50 and codes.count(0) > 10


def test_every_test_that_the_table_of_faults_names_exists():
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs/reliability.md").read_text()))
    written = {n for p in (ROOT / "tests").glob("*.py") for n in re.findall(r"^def (test_\w+)", p.read_text(), re.M)}
    assert len(named) > 30 and named <= written, named - written


# what evaluate.py and explore.py write, as cheaply as can be
SINGLE_FILES = {
    "fid.json": ("evaluate", "fid", "-n", 4, "--features", "random"),
    "by_t.csv": ("evaluate", "bpd", "-n", 2, "--levels", 2),
    "by_image.csv": ("evaluate", "loglik", "-n", 2, "--tol", 1),
    "nearest.png": ("evaluate", "nearest", "-n", 2),
    "speed.csv": ("evaluate", "speed", "-n", 1, "--samplers", "ddim", "--steps", 1),
    "sweep.png": ("evaluate", "sweep", "-n", 4, "--samplers", "ddim", "--steps", 1),
    "denoise.png": ("explore", "denoise"),
    "morph.gif": ("explore", "morph", "--frames", 2, "-n", 1),
}


@pytest.mark.parametrize("name", SINGLE_FILES)
def test_a_file_of_the_users_is_not_replaced_by_a_figure_but_an_earlier_figure_is(program, run_folder, name):
    argv = (*SINGLE_FILES[name], "--ckpt", run_folder, "--out", "mine")
    Path("mine").mkdir()
    Path("mine", name).write_text("mine")
    code, _, err = program(*argv)
    assert code == 2 and Path("mine", name).read_text() == "mine" and os.listdir("mine") == [name]
    one_line(err, f"mine/{name} was not written by an earlier call", "--out DIR")
    Path("mine", name).unlink()
    assert program(*argv)[0] == program(*argv)[0] == 0 and Path("mine", name).read_bytes() != b"mine"
    written = {p.name for p in Path("mine").iterdir()} - {".written"}
    assert written == set(Path("mine/.written").read_text().split())  # every file that it writes is claimed


def test_figures_of_several_lessons_share_a_folder(program, run_folder):
    lessons = [("explore", name, "--ckpt", run_folder, "--out", "all") for name in ("denoise", "schedules", "denoise")]
    assert [program(*argv)[0] for argv in lessons] == [0, 0, 0]


@pytest.mark.parametrize("argv", [("evaluate", "nearest", "-n", 2), ("explore", "seeds")])
def test_a_folder_that_cannot_be_written_is_refused_before_the_work(program, run_folder, monkeypatch, argv):
    monkeypatch.setattr("lessons.lab.Lab.denoiser", lambda *_, **__: pytest.fail("it began"))
    monkeypatch.setattr("measures.subject.Subject.draw", lambda *_, **__: pytest.fail("it began"))
    one_line(program(*argv, "--ckpt", run_folder, "--out", "/proc")[2], "cannot write in /proc", "--out DIR")


@pytest.mark.parametrize(
    ("argv", "flag"),
    [
        (("main", "--export", ""), "--export"), (("main", "--out", ""), "--out"), (("main", "--data", ""), "--data"),
        (("generate", "ddim", "--out", ""), "--out"), (("generate", "ddim", "--ckpt", ""), "--ckpt"),
        (("edit", "inpaint", "--image", ""), "--image"), (("edit", "inpaint", "--mask", ""), "--mask"),
        (("evaluate", "fid", "--out", ""), "--out"), (("explore", "steps", "--out", ""), "--out"),
    ],
)  # fmt: skip
def test_an_empty_name_is_not_taken_for_none(program, argv, flag):
    """An unset variable in a script."""
    code, _, err = program(*argv)
    assert code == 2
    one_line(err, flag, "empty name")


def test_the_home_folder_is_known_where_the_shell_leaves_its_sign_alone(program, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert program("main", *SMOKE, "--verify", "--out=~/grids")[0] == 0
    assert (tmp_path / "home/grids/smoke.png").exists() and not Path("~").exists()


@pytest.mark.parametrize(
    "argv", [("edit", "inpaint"), ("edit", "invert"), ("explore", "denoise"), ("evaluate", "bpd"), ("generate", "ddim")]
)
def test_weights_that_are_not_finite_are_refused(program, run_folder, tmp_path, argv):
    state = torch.load(run_folder / "best.pth", weights_only=True)
    state["ema"]["head.bias"][0] = math.nan
    torch.save(state, tmp_path / "nan.pth")
    code, _, err = program(*argv, "--ckpt", "nan.pth")
    assert code == 2
    one_line(err, "nan.pth", "head.bias is not finite")


def test_weights_too_large_for_half_precision_are_not_exported(program, run_folder, tmp_path):
    state = torch.load(run_folder / "best.pth", weights_only=True)
    state["ema"]["head.bias"][0] = 1e6
    (tmp_path / "big").mkdir()
    torch.save(state, tmp_path / "big/best.pth")
    code, _, err = program("main", "--out", "big", "--export", "small.pth")
    assert code == 2 and not Path("small.pth").exists()
    one_line(err, "head.bias is too large")


def test_a_run_without_its_last_checkpoint_says_so(program, run_folder, tmp_path):
    import shutil

    shutil.copytree(run_folder, tmp_path / "run")
    (tmp_path / "run/last.pth").unlink()
    code, _, err = program("main", "--resume", "--out", "run")
    assert code == 2
    one_line(err, "run/last.pth is gone", "best.pth can still draw")


def test_an_unknown_preset_is_refused_by_export_too(program):
    code, _, err = program("main", "--preset", "smok", "--export", "small.pth")
    assert code == 2
    one_line(err, "--preset smok", "smoke")


@pytest.mark.parametrize("left", [{"WORLD_SIZE": "x"}, {"WORLD_SIZE": "0"}, {"WORLD_SIZE": "2", "RANK": "0"}])
def test_what_a_cluster_left_in_the_environment_is_named(program, monkeypatch, left):
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in left.items():
        monkeypatch.setenv(name, value)
    code, _, err = program("main", *SMOKE, "--verify")
    assert code == 2
    one_line(err, "WORLD_SIZE", "torchrun")


def test_edm_is_not_refused_for_the_betas_that_it_does_not_use(program):
    assert program("main", *SMOKE, "--diffusion.process", "edm", "--diffusion.T", 20_000, "--verify")[0] == 0
    code, _, err = program("main", *SMOKE, "--diffusion.T", 20_000, "--diffusion.beta_end", 0.02, "--verify")
    assert code == 2
    one_line(err, "--diffusion.beta_end")
