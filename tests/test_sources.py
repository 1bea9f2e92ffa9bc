"""A source's name or path becomes one array, which splits the same way every time; every failure is one clear line."""

import os
import subprocess
import sys
import urllib.error
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from config import UserError
from dataset import sources

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))


def load(source, size=(32, 32), channels=3, **options):
    return sources.load(source, size=size, channels=channels, **options)


def images(n):
    return sources.Images(np.zeros((n, 3, 1, 1), np.uint8), None, (), "zeros")


# --- textiles ---


def test_textiles_are_drawn_from_count_seed_and_size():
    a, again, other = (load("textiles", (32, 48), count=6, seed=s) for s in (1, 1, 2))
    assert a.pixels.shape == (6, 3, 32, 48) and a.pixels.dtype == np.uint8
    assert a.labels.shape == (6,) and a.labels.dtype == np.int64 and a.labels.max() < len(a.classes)
    assert np.array_equal(a.pixels, again.pixels) and not np.array_equal(a.pixels, other.pixels)
    assert (a.name, a.skipped, a.summary()) == ("textiles", (), "6 usable")


def test_grey_textiles_are_luma_and_four_channels_add_opaque_alpha():
    rgb, grey, rgba = (load("textiles", channels=c, count=4).pixels for c in (3, 1, 4))
    assert grey.shape == (4, 1, 32, 32) and rgba.shape == (4, 4, 32, 32)
    luma = np.tensordot([0.299, 0.587, 0.114], rgb, axes=(0, 1))
    assert np.abs(grey[:, 0] - luma).max() <= 0.51
    assert np.array_equal(rgba[:, :3], rgb) and (rgba[:, 3] == 255).all()


@pytest.mark.parametrize("count", [0, -1])
def test_textiles_without_a_count_are_an_error(count):
    with pytest.raises(UserError, match="count"):
        load("textiles", count=count)


# --- CIFAR-10 ---


class FakeCIFAR10:
    """50 images; red says which one, green its class, blue which row."""

    classes = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    calls = ()

    def __init__(self, root, train, download):
        FakeCIFAR10.calls += ((root, train, download),)
        print("Files already downloaded and verified")
        self.targets = [i % 10 for i in range(50)]
        self.data = np.zeros((50, 32, 32, 3), np.uint8)
        self.data[..., 0] = np.arange(50)[:, None, None]
        self.data[..., 1] = np.array(self.targets)[:, None, None]
        self.data[..., 2] = np.arange(32)[:, None]


@pytest.fixture
def cifar10(monkeypatch):
    datasets = pytest.importorskip("torchvision.datasets")
    monkeypatch.setattr(datasets, "CIFAR10", FakeCIFAR10)
    monkeypatch.setattr(FakeCIFAR10, "calls", ())
    return FakeCIFAR10


def test_cifar10_has_all_its_images_and_labels(cifar10):
    a = load("cifar10", count=3)  # ignored
    assert a.pixels.shape == (50, 3, 32, 32) and a.pixels.flags.c_contiguous
    assert a.pixels[:, 0, 5, 5].tolist() == list(range(50))
    assert a.pixels[0, 2, :, 5].tolist() == list(range(32))
    assert a.labels.tolist() == [i % 10 for i in range(50)] and a.labels.dtype == np.int64
    assert a.classes == cifar10.classes and a.name == "cifar10"


def test_cifar10_cars_are_the_automobiles_without_labels(cifar10):
    a = load("cifar10-cars")
    assert a.pixels[:, 0, 0, 0].tolist() == [1, 11, 21, 31, 41] and (a.pixels[:, 1] == 1).all()
    assert (a.labels, a.classes, a.name) == (None, (), "cifar10-cars")


def test_cifar10_is_resized_and_converted_like_files(cifar10):
    assert load("cifar10", (64, 48)).pixels.shape == (50, 3, 64, 48)
    grey = load("cifar10-cars", channels=1).pixels
    assert grey.shape == (5, 1, 32, 32) and grey[:, 0, 0, 0].tolist() == [
        round(0.299 * red + 0.587) for red in (1, 11, 21, 31, 41)
    ]


def test_cifar10_is_the_training_set_kept_in_data_or_in_the_given_folder(cifar10, tmp_path):
    load("cifar10"), load("cifar10", cache=tmp_path / "x")
    assert cifar10.calls == (("data", True, True), (str(tmp_path / "x"), True, True))


def test_what_torchvision_prints_stays_out_of_stdout(cifar10, capsys):
    load("cifar10")
    out, err = capsys.readouterr()
    assert out == "" and "verified" in err


@pytest.mark.parametrize(
    "failure",
    [
        urllib.error.URLError("no route\nto host"),
        OSError(28, "No space left on device"),
        RuntimeError("File not found or corrupted."),
        EOFError("Compressed file ended"),
    ],
)
def test_a_failed_download_is_one_line_with_both_ways_on(cifar10, monkeypatch, tmp_path, failure):
    def fail(*_, **__):
        raise failure

    monkeypatch.setattr(cifar10, "__init__", fail)
    with pytest.raises(UserError) as error:
        load("cifar10-cars")
    message = str(error.value)
    assert "\n" not in message and type(failure).__name__ in message and str(tmp_path / "data") in message
    assert "--data PATH" in message and "python main.py" in message


def test_without_torchvision_the_same_line_appears(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    with pytest.raises(UserError, match=r"CIFAR-10.*--data PATH"):
        load("cifar10")


def test_a_broken_download_does_not_poison_the_next_attempt(monkeypatch, tmp_path):
    """The real torchvision, with a download that stops half-way: nothing of it is taken for the data set."""
    utils = pytest.importorskip("torchvision.datasets.utils")
    attempts = []

    def half(url, path, *_, **__):
        attempts.append(url)
        Path(path).write_bytes(b"half of an archive")

    monkeypatch.setattr(utils, "_urlretrieve", half)
    monkeypatch.setattr(utils, "_get_redirect_url", lambda url, **_: url)
    for tries in (1, 2):
        with pytest.raises(UserError, match="corrupted"):
            load("cifar10", cache=tmp_path / "data")
        assert len(attempts) == tries  # the half file was there at the second try, and was not believed


# --- paths and names ---


def save(path, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (value,) * 3).save(path)


def test_a_folder_is_read_with_labels_skips_name_and_summary(tmp_path):
    save(tmp_path / "pets/cat/1.png", 5), save(tmp_path / "pets/dog/1.png", 9)
    (tmp_path / "pets/cat/a.png").touch(), (tmp_path / "pets/dog/b.jpg").write_text("text")
    a = load("pets", (8, 8), cache=tmp_path / "cache")
    assert a.pixels[:, 0, 0, 0].tolist() == [5, 9] and a.labels.tolist() == [0, 1] and a.classes == ("cat", "dog")
    assert a.name == "pets" and a.skipped == ("cat/a.png: empty file", "dog/b.jpg: not an image")
    assert a.summary() == "2 usable, 2 skipped: cat/a.png (empty file), dog/b.jpg (not an image)"
    assert list((tmp_path / "cache").iterdir()) and not (tmp_path / "xdg").exists()


def test_thousands_are_grouped_and_long_lists_cut():
    a = sources.Images(np.zeros((4998, 1, 1, 1), np.uint8), None, (), "x", tuple(f"{i}.png: y" for i in range(17)))
    assert a.summary().startswith("4,998 usable, 17 skipped: 0.png (y), ") and a.summary().endswith(", and 12 more")


def test_home_is_understood(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    save(tmp_path / "pets/1.png")
    assert len(load("~/pets", (8, 8)).pixels) == 1


def test_a_name_wins_over_a_folder_of_that_name_and_a_path_reaches_it(tmp_path):
    save(tmp_path / "textiles/1.png")
    assert load("textiles", count=2).name == "textiles" and load("textiles", count=2).labels is not None
    assert load("./textiles").labels is None


@pytest.mark.parametrize(
    ("source", "hint"),
    [("cifar-10", "cifar10"), ("CIFAR10", "cifar10"), ("textile", "textiles"), ("cifar10_cars", "cifar10-cars")],
)
def test_a_misspelt_name_gets_the_nearest_one(source, hint):
    with pytest.raises(UserError, match=rf" \(did you mean {hint}\?\); accepted: "):
        load(source)


@pytest.mark.parametrize("source", ["nowhere/photos", "", "x" * 5000, "~nobody-of-that-name/x", "a\0b"])
def test_an_unknown_source_names_the_absolute_path_and_what_is_accepted(source, tmp_path):
    with pytest.raises(UserError) as error:
        load(source)
    message = str(error.value)
    assert os.path.join(tmp_path, source) in message or source == ""
    assert "did you mean" not in message and "\n" not in message
    for accepted in (*sources.NAMES, "folder", ".zip", "png"):
        assert accepted in message


@pytest.mark.parametrize("options", [{"channels": 2}, {"channels": 0}, {"size": (0, 8)}, {"size": (8, -1)}])
def test_impossible_shapes_are_refused(options):
    with pytest.raises(UserError):
        load("textiles", count=1, **options)


def test_torch_is_imported_for_cifar_alone():
    code = "import sys; from dataset import sources; print([m for m in sys.modules if m.startswith('torch')])"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"


# --- split ---


@pytest.mark.parametrize(
    ("n", "fraction", "held_out"), [(5000, 0.15, 750), (50, 0.1, 5), (2, 0.01, 1), (3, 0.99, 2), (19, 0.1, 2)]
)
def test_a_split_is_disjoint_sorted_and_complete(n, fraction, held_out):
    train, val = sources.split(images(n), fraction, seed=0)
    assert (len(train), len(val)) == (n - held_out, held_out)
    assert sorted([*train, *val]) == list(range(n))
    assert (np.diff(train) > 0).all() and (np.diff(val) > 0).all()
    assert train.dtype == val.dtype == np.int64


def test_a_split_depends_on_the_seed_alone():
    a, again, other = (sources.split(images(100), 0.3, seed=s)[1].tolist() for s in (0, 0, 1))
    assert a == again != other


def test_a_split_is_random_and_not_the_last_images():
    assert sources.split(images(1000), 0.5, seed=0)[1].mean() == pytest.approx(500, abs=50)


def test_a_single_image_validates_itself():
    assert [part.tolist() for part in sources.split(images(1), 0.1, seed=0)] == [[0], [0]]


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, float("nan")])
def test_a_fraction_outside_of_0_to_1_is_refused(fraction):
    with pytest.raises(UserError, match="between 0 and 1"):
        sources.split(images(10), fraction, seed=0)
