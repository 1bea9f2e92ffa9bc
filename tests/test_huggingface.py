"""Hugging Face data sets, on one that the test writes to disk; and both optional packages when they are missing."""

import io
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from board import Board
from config import UserError
from dataset import sources
from views import COLUMNS


def noise(i):
    return np.random.default_rng(i).integers(0, 256, (12, 12, 3), dtype=np.uint8)


def png(i):
    out = io.BytesIO()
    Image.fromarray(noise(i)).save(out, format="PNG")
    return {"bytes": out.getvalue(), "path": None}


@pytest.fixture
def saved(tmp_path):
    datasets = pytest.importorskip("datasets")

    def save(columns, features, split="train"):
        data = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
        datasets.DatasetDict({split: data}).save_to_disk(str(tmp_path / "set"))
        return f"hf:{tmp_path / 'set'}"

    return save


def load(name, tmp_path):
    return sources.load(name, size=(12, 12), channels=3, cache=tmp_path / "cache")


def test_images_and_labels_come_through_and_are_cached(saved, tmp_path, monkeypatch):
    import datasets

    features = {
        "n": datasets.Value("int32"),
        "picture": datasets.Image(),
        "kind": datasets.ClassLabel(names=["b", "a"]),
    }
    name = saved({"n": [0, 1, 2], "picture": [png(0), png(1), png(2)], "kind": [0, 1, 0]}, features)
    images = load(name, tmp_path)
    assert images.classes == ("a", "b") and images.labels.tolist() == [0, 1, 1]
    for pixels, i in zip(images.pixels, (1, 0, 2)):  # class by class
        assert np.array_equal(pixels, noise(i).transpose(2, 0, 1))
    monkeypatch.setattr(Image, "open", None)  # nothing is decoded a second time
    assert np.array_equal(load(name, tmp_path).pixels, images.pixels)


def test_a_damaged_image_is_skipped_and_other_splits_are_found(saved, tmp_path):
    import datasets

    broken = {"bytes": b"not a picture", "path": None}
    name = saved({"image": [png(0), broken, png(2)]}, {"image": datasets.Image()}, split="test")
    images = load(name, tmp_path)
    assert len(images.pixels) == 2 and images.labels is None and len(images.skipped) == 1


def test_a_set_without_images_is_refused(saved, tmp_path):
    import datasets

    name = saved({"text": ["x"]}, {"text": datasets.Value("string")})
    with pytest.raises(UserError, match="no image column among text"):
        load(name, tmp_path)


def test_an_unknown_set_is_one_line(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")

    def offline(name):
        raise ConnectionError("no network\nat all")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(UserError, match="cannot be loaded") as error:
        load("hf:no/such", tmp_path)
    assert "\n" not in str(error.value) and "--data PATH" in str(error.value)


class Picture:
    """Stands in for datasets.Image, and the two classes below for datasets.ClassLabel and datasets.Dataset."""

    def __init__(self, decode=True):
        self.decode = decode


class Kind:
    names = ("dog/wolf", "cat")

    def int2str(self, n):
        return self.names[n]


class Table:
    def __init__(self, pictures, kinds, fingerprint):
        self.features = {"picture": Picture(), "kind": Kind()}
        self.rows = [{"picture": png(i), "kind": kind} for i, kind in zip(pictures, kinds)]
        self._fingerprint = fingerprint

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, key):
        return [row[key] for row in self.rows] if isinstance(key, str) else self.rows[key]

    def cast_column(self, name, kind):
        return self


def test_a_picture_that_is_stored_by_its_path_is_read_from_there(tmp_path, monkeypatch):
    table = Table([0, 1], [0, 0], "a")
    (tmp_path / "1.png").write_bytes(png(1)["bytes"])
    table.rows[1]["picture"] = {"bytes": None, "path": str(tmp_path / "1.png")}
    package = SimpleNamespace(Image=Picture, ClassLabel=Kind, load_dataset=lambda name: table)
    monkeypatch.setitem(sys.modules, "datasets", package)
    images = load("hf:user/set", tmp_path)
    assert not images.skipped and np.array_equal(images.pixels[1], noise(1).transpose(2, 0, 1))


def test_the_training_split_is_taken_the_unlabelled_are_a_class_and_other_data_is_noticed(tmp_path, monkeypatch):
    """Without the package, so that it is tested everywhere."""
    splits = {"test": Table([7], [0], "a"), "train": Table([0, 1, 2, 6], [0, -1, 1, None], "b")}
    package = SimpleNamespace(Image=Picture, ClassLabel=Kind, load_dataset=lambda name: splits)
    monkeypatch.setitem(sys.modules, "datasets", package)
    images = load("hf:user/set", tmp_path)
    assert images.classes == ("cat", "dog_wolf", "unlabelled") and images.labels.tolist() == [0, 1, 2, 2]
    for pixels, i in zip(images.pixels, (2, 0, 1, 6)):  # class by class
        assert np.array_equal(pixels, noise(i).transpose(2, 0, 1))
    splits["train"] = Table([3, 4, 5, 6], [0, -1, 1, None], "c")
    assert np.array_equal(load("hf:user/set", tmp_path).pixels[0], noise(5).transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("module", "flags", "words"),
    [("datasets", ["--data", "hf:x/y"], "pip install datasets"),
     ("torch.utils.tensorboard", ["--tensorboard"], "pip install tensorboard")],
)  # fmt: skip
def test_a_missing_optional_package_is_one_line(program, monkeypatch, module, flags, words):
    monkeypatch.setitem(sys.modules, module, None)
    code, _, err = program("main", "--preset", "smoke", *flags)
    assert code == 2 and err.count("\n") == 1 and words in err


def test_the_board_shows_each_figure_and_picture_at_its_step(program, monkeypatch):
    """With a writer that takes notes, so that the package need not be there."""
    seen, flushed = [], []

    class Writer:
        def __init__(self, folder):
            seen.append(("folder", str(folder), None))

        def add_scalar(self, name, value, step=None):
            seen.append(("scalar", name, step))

        def add_image(self, name, picture, step=None):
            seen.append(("image", name, step))

        def flush(self):
            flushed.append(len(seen))

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=Writer))
    assert program("main", "--preset", "smoke", "--tensorboard")[0] == 0
    figures = [("scalar", name) for name in COLUMNS if name != "step"]
    shown = [*figures, ("image", "step"), ("image", "strip")]
    assert seen[0] == ("folder", "ckpt/smoke/tensorboard", None)
    assert sorted(seen[1:]) == sorted((*what, step) for step in (4, 8) for what in shown)
    assert flushed == [1 + len(shown), 1 + 2 * len(shown)]  # to be seen at once, and after a kill


def test_tensorboard_gets_every_scalar_and_both_pictures(program, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert program("main", "--preset", "smoke", "--tensorboard")[0] == 0
    events = EventAccumulator(str(tmp_path / "ckpt/smoke/tensorboard"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == set(COLUMNS) - {"step"}
    assert set(events.Tags()["images"]) == {"step", "strip"}
    assert [e.step for e in events.Scalars("val_loss")] == [4, 8]


def test_the_board_is_given_the_values_and_the_pictures_themselves(monkeypatch):
    seen = []

    class Writer:
        def __init__(self, folder):
            pass

        def note(self, *what):
            seen.append(what)

        def flush(self):
            pass

        add_scalar = add_image = note

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=Writer))
    Board("x").show({"step": 4, "val_loss": 0.5}, {"strip": "picture"})
    assert seen == [("val_loss", 0.5, 4), ("strip", "picture", 4)]
