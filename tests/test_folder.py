"""Any folder or zip of images becomes one array; whatever is broken is skipped by name, never fatal."""

import errno
import io
import json
import os
import random
import shutil
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from config import UserError
from dataset import folder

RED, WHITE = (255, 0, 0), (255, 255, 255)


@pytest.fixture
def root(tmp_path):
    (tmp_path / "images").mkdir()
    return tmp_path / "images"


@pytest.fixture
def read(root, tmp_path):
    """Read root (or another path) at 8 x 8 into a cache of this test's own."""

    def read(path=root, size=(8, 8), channels=3, cache=tmp_path / "cache"):
        return folder.read(path, size=size, channels=channels, cache=cache)

    return read


def save(path, colour=RED, size=(8, 8), mode="RGB", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path, **options)
    return path


def png(colour=RED, size=(8, 8)):
    out = io.BytesIO()
    Image.new("RGB", size, colour).save(out, "PNG")
    return out.getvalue()


def noise(size=(64, 64)):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8))


def pixel(result, i=0):
    """The one colour of a uniform image."""
    image = result[0][i]
    assert np.ptp(image.reshape(len(image), -1), axis=1).max() <= 2, "not uniform"
    return tuple(image[:, 0, 0].tolist())


# --- which files, in which order, with which labels ---


def test_images_are_found_at_any_depth_with_any_case_of_extension_in_path_order(root, read):
    for i, name in enumerate(["b/z.PNG", "a.Png", "b/c/d.bmp", "e.webp"]):
        save(root / name, (0, 0, 10 * i), **({"lossless": True} if name.endswith("webp") else {}))
    pixels, labels, classes, skipped = read()
    assert pixels.dtype == np.uint8 and pixels.shape == (4, 3, 8, 8)
    assert pixels[:, 2, 0, 0].tolist() == [10, 20, 0, 30]  # a.Png, b/c/d.bmp, b/z.PNG, e.webp
    assert (labels, classes, skipped) == (None, (), ())


def test_every_ending_of_a_kind_that_is_read_is_read(root, read):
    save(root / "a.jpg"), save(root / "b.JPEG"), save(root / "c.gif")
    os.link(root / "a.jpg", root / "d.JFIF")
    assert len(read()[0]) == 4


def test_pictures_of_kinds_that_are_not_read_are_listed_and_other_files_are_not(root, read):
    save(root / "a.png")
    for name in ("b.heic", "c.TIF", "notes.txt"):
        (root / name).write_text("x")
    assert read()[3] == ("b.heic: .heic is not read; convert it to .png", "c.TIF: .tif is not read; convert it to .png")


def test_class_folders_give_labels_by_the_first_folder(root, read):
    save(root / "dog/1.png"), save(root / "cat/deep/er/1.png"), save(root / "dog/2.png")
    _, labels, classes, _ = read()
    assert classes == ("cat", "dog") and labels.tolist() == [0, 1, 1] and labels.dtype == np.int64


def test_one_usable_image_at_the_root_means_no_labels(root, read):
    save(root / "dog/1.png"), save(root / "loose.png")
    assert read()[1:3] == (None, ())


def test_an_unusable_image_at_the_root_does_not_cost_the_labels(root, read):
    save(root / "dog/1.png"), (root / "loose.png").write_text("no image")
    assert read()[2] == ("dog",)


def test_hidden_files_and_macosx_are_ignored(root, read):
    for name in ("a.png", ".b.png", ".hidden/c.png", "__MACOSX/d.png", "__MACOSX/._a.png"):
        save(root / name)
    pixels, _, _, skipped = read()
    assert len(pixels) == 1 and skipped == ()


def test_links_to_a_parent_do_not_hang_and_do_not_repeat_images(root, read):
    save(root / "sub/a.png"), save(root / "b.png")
    (root / "sub/loop").symlink_to(root, target_is_directory=True)
    assert len(read()[0]) == 2


def test_of_two_links_to_a_folder_the_first_by_name_is_read(root, read, tmp_path):
    save(tmp_path / "elsewhere/a.png")
    for name in ("m", "z", "a", "q", "c"):  # in whatever order the system lists them
        (root / name).symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert read()[2] == ("a",)


def test_linked_folders_are_followed(root, read, tmp_path):
    save(tmp_path / "elsewhere/a.png")
    (root / "link").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert len(read()[0]) == 1


def test_odd_file_names_cannot_break_a_message(root, read):
    save(root / "a.png")
    (root / "x\n\x1b[31m: .png").write_text("no image")
    Path(os.fsdecode(os.fsencode(root) + b"/\xff.png")).write_text("no image")
    skipped = read()[3]
    assert len(skipped) == 2 and all(s.isprintable() for s in skipped)
    assert "(not an image)" in folder.listed(skipped)
    assert read()[3] == skipped  # and they survive the cache


# --- colours and shapes ---


@pytest.mark.parametrize(
    ("mode", "colour", "extension", "expected"),
    [
        ("L", 77, "png", (77, 77, 77)),
        ("1", 1, "png", WHITE),
        ("LA", (0, 0), "png", WHITE),
        ("RGBA", (255, 0, 0, 0), "png", WHITE),
        ("RGBA", (0, 0, 0, 51), "png", (204, 204, 204)),
        ("RGBA", (255, 0, 0, 255), "webp", RED),
        ("CMYK", (0, 255, 255, 0), "jpg", (255, 0, 0)),
    ],
)
def test_colour_modes_become_rgb_over_white(root, read, mode, colour, extension, expected):
    save(root / f"a.{extension}", colour, mode=mode, **({"lossless": True} if extension == "webp" else {}))
    assert np.abs(np.subtract(pixel(read()), expected)).max() <= 2


def test_palettes_and_their_transparent_entry_are_understood(root, read):
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 9, 80, 200])
    image.save(root / "a.png")
    image.save(root / "b.png", transparency=1)
    result = read()
    assert pixel(result, 0) == (9, 80, 200) and pixel(result, 1) == WHITE


def test_a_transparent_colour_without_alpha_channel_is_understood(root, read):
    save(root / "a.png", RED, transparency=RED)
    assert pixel(read()) == WHITE


def test_four_channels_keep_alpha_and_add_an_opaque_one(root, read):
    save(root / "a.png", (10, 20, 30, 40), mode="RGBA"), save(root / "b.png", RED)
    save(root / "c.jpg", (0, 0, 0, 0), mode="CMYK")
    result = read(channels=4)
    assert pixel(result, 0) == (10, 20, 30, 40) and pixel(result, 1) == (*RED, 255)
    assert pixel(result, 2) == (255, 255, 255, 255)


def test_one_channel_is_luma(root, read):
    save(root / "a.png", (255, 0, 0)), save(root / "b.png", (0, 255, 0))
    result = read(channels=1)
    assert result[0].shape == (2, 1, 8, 8) and pixel(result, 0) == (76,) and pixel(result, 1) == (150,)


@pytest.mark.parametrize("value", [0, 128, 129, 257, 30_000, 60_000, 65_535])
def test_sixteen_bit_grey_is_scaled_not_clipped(root, read, value):
    Image.fromarray(np.full((8, 8), value, np.uint16)).save(root / "a.png")
    assert pixel(read(channels=1)) == (round(value / 257),)


def test_exif_orientation_is_applied_before_anything_else(root, read):
    image = Image.fromarray(np.repeat(np.array([[RED, (0, 0, 255)]], np.uint8), 2, 0))  # left red, right blue
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise: top red, bottom blue
    image.resize((8, 8), Image.Resampling.NEAREST).save(root / "a.png", exif=exif)
    pixels = read()[0][0]
    assert tuple(pixels[:, 0, 4]) == RED and tuple(pixels[:, 7, 4]) == (0, 0, 255)


def test_the_first_frame_of_an_animation_is_taken_and_content_beats_extension(root, read):
    frames = [Image.new("RGB", (8, 8), c) for c in (RED, (0, 255, 0))]
    frames[0].save(root / "a.png", format="GIF", save_all=True, append_images=frames[1:])
    assert pixel(read()) == RED


def test_formats_beyond_those_announced_are_not_decoded(root, read):
    save(root / "a.png"), save(root / "b.png", format="EPS"), save(root / "c.png", format="TIFF")
    pixels, _, _, skipped = read()
    assert len(pixels) == 1 and skipped == ("b.png: not an image", "c.png: not an image")


@pytest.mark.parametrize("target", [(8, 8), (4, 8), (8, 4), (5, 7), (1, 1)])
@pytest.mark.parametrize("source", [(8, 8), (40, 16), (16, 40), (1, 1), (3, 1000)])
def test_images_cover_the_target_and_are_cropped_at_the_centre(root, read, target, source):
    h, w = source
    scale = max(target[0] / h, target[1] / w)
    keep_h, keep_w = target[0] / scale, target[1] / scale  # in source pixels
    ramp = np.zeros((h, w, 3), np.uint8)
    ramp[..., 0], ramp[..., 1] = np.linspace(0, 255, h)[:, None], np.linspace(0, 255, w)[None, :]
    Image.fromarray(ramp).save(root / "a.png")
    pixels = read(size=target)[0][0].astype(float)
    assert pixels.shape == (3, *target)
    # The crop is central: its mean is the middle of the ramp, and its range is the part of it that was kept.
    for axis, length, keep in ((0, h, keep_h), (1, w, keep_w)):
        if length > 1:
            assert abs(pixels[axis].mean() - 127.5) < 4
            assert np.ptp(pixels[axis]) <= 255 * keep / (length - 1) + 4


def test_a_line_of_20000_pixels_works_both_ways(root, read):
    (
        save(root / "a.png", size=(20_000, 1)),
        save(root / "b.png", size=(1, 20_000)),
        save(root / "c.jpg", size=(20_000, 3)),
    )
    result = read(size=(32, 32))
    assert pixel(result, 0) == pixel(result, 1) == RED and len(result[0]) == 3


def test_large_jpegs_decode_to_the_same_picture_as_png(root, read):
    smooth = noise((6, 9)).resize((900, 600), Image.Resampling.BICUBIC)
    smooth.save(root / "a.jpg", quality=95), smooth.save(root / "b.png")
    a, b = read(size=(32, 32))[0].astype(int)
    assert np.abs(a - b).max() <= 3


# --- faults ---


def bomb():
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_each_broken_file_is_skipped_by_name_with_its_reason(root, read):
    save(root / "good.png")
    noise().save(root / "cut.jpg"), noise().save(root / "cut.png"), noise().save(root / "cut.bmp")
    for path in root.glob("cut.*"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    (root / "empty.png").touch()
    (root / "text.png").write_text("hello")
    (root / "bomb.png").write_bytes(bomb())
    (root / "gone.png").symlink_to(root / "nowhere")
    os.mkfifo(root / "pipe.png")
    pixels, _, _, skipped = read()
    assert len(pixels) == 1
    assert skipped == (
        "bomb.png: too many pixels",
        "cut.bmp: truncated or damaged",
        "cut.jpg: truncated or damaged",
        "cut.png: truncated or damaged",
        "empty.png: empty file",
        "gone.png: no such file or directory",
        "pipe.png: not a regular file",
        "text.png: not an image",
    )


def test_a_bomb_is_refused_before_it_is_decoded(root, read, monkeypatch):
    save(root / "good.png"), (root / "bomb.png").write_bytes(bomb())
    loaded, load = [], Image.Image.load
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda image: (loaded.append(image.size), load(image))[1])
    with pytest.raises(UserError):  # load() is crippled, so that even the good one counts as broken
        read()
    assert set(loaded) == {(8, 8)}


def test_a_file_larger_than_the_limit_is_not_even_opened(root, read, monkeypatch):
    save(root / "a.png"), save(root / "b.png", size=(99, 99))
    monkeypatch.setattr(folder, "MAX_BYTES", (root / "a.png").stat().st_size)
    assert [s.split(":")[0] for s in read()[3]] == ["b.png"]


@pytest.mark.parametrize("kind", [PermissionError, FileNotFoundError])
def test_a_file_that_cannot_be_read_or_vanished_meanwhile_is_skipped(root, read, monkeypatch, kind):
    save(root / "a.png"), save(root / "b.png")
    real = Path.read_bytes

    def read_bytes(path):
        if path.name == "b.png":
            raise kind(errno.EACCES, "No Luck")
        return real(path)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    pixels, _, _, skipped = read()
    assert len(pixels) == 1 and skipped == ("b.png: no luck",)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_files_and_folders_are_skipped_until_they_become_readable(root, read):
    save(root / "a.png"), save(root / "b.png").chmod(0), save(root / "c/d.png").parent.chmod(0)
    assert read()[3] == ("b.png: permission denied", "c/: permission denied")
    (root / "b.png").chmod(0o600), (root / "c").chmod(0o700)
    assert len(read()[0]) == 3


def test_an_unreadable_folder_is_listed(root, read, monkeypatch):
    save(root / "a.png"), save(root / "sub/b.png")
    real = os.scandir

    def scandir(path):
        if os.path.basename(path) == "sub":
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    pixels, _, _, skipped = read()
    assert len(pixels) == 1 and skipped == ("sub/: permission denied",)


def test_no_usable_image_is_one_line_naming_path_counts_extensions_and_what_is_accepted(root, read, tmp_path):
    for name in ("a.txt", "b.TXT", "c.txt", "README", "d.gif"):
        (root / name).write_text("x")
    (root / "broken.png").write_text("x")
    with pytest.raises(UserError) as error:
        read()
    message = str(error.value)
    assert "\n" not in message
    for part in (str(root), "6 files", ".txt x3", "(no extension) x1", ".gif x1", "broken.png (not an image)", "webp"):
        assert part in message
    assert not list((tmp_path / "cache").iterdir())  # and no half of a cache entry


@pytest.mark.parametrize("make", ["missing", "empty", "pipe", "notzip", "cutzip", "emptyzip"])
def test_a_path_that_holds_nothing_is_one_user_error_naming_it(root, read, tmp_path, make):
    path = {"missing": tmp_path / "nowhere", "empty": root}.get(make, tmp_path / "a.zip")
    if make == "pipe":
        os.mkfifo(path)  # opening it would wait for ever
    elif make == "notzip":
        path.write_text("no zip")
    elif make.endswith("zip"):
        with zipfile.ZipFile(path, "w") as z:
            if make == "cutzip":
                z.writestr("a.png", png())
        if make == "cutzip":
            path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(UserError) as error:
        read(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value) and "accepted" in str(error.value)


def test_long_lists_are_cut_short():
    assert folder.listed(("a.png: x", "b: c.png: y")) == "a.png (x), b: c.png (y)"
    assert folder.listed(tuple(f"{i}.png: x" for i in range(5))).endswith("3.png (x), 4.png (x)")
    assert folder.listed(tuple(f"{i}.png: x" for i in range(6))).endswith("4.png (x), and 1 more")
    assert folder.listed(tuple(f"{i}.png: x" for i in range(17))).endswith("4.png (x), and 12 more")


# --- zips ---


def make_zip(path, **files):
    with zipfile.ZipFile(path, "w") as z:
        for name, data in files.items():
            z.writestr(name, data)
    return path


def test_a_zip_reads_like_the_folder_it_holds(root, read, tmp_path):
    for i, name in enumerate(("b/1.png", "a/2.png", "a/3.png")):
        save(root / name, (i, i, i))
    (root / "a/bad.png").write_text("x")
    path = Path(shutil.make_archive(str(tmp_path / "z"), "zip", root))
    from_folder, from_zip = read(), read(path)
    assert np.array_equal(from_folder[0], from_zip[0]) and np.array_equal(from_folder[1], from_zip[1])
    assert from_folder[2:] == from_zip[2:] == (("a", "b"), ("a/bad.png: not an image",))


def test_the_single_top_folder_of_a_zip_is_no_class(read, tmp_path):
    path = make_zip(
        tmp_path / "z.zip", **{"pets/cat/1.png": png(), "pets/dog/1.png": png(), "__MACOSX/pets/x.png": b""}
    )
    assert read(path)[2:] == (("cat", "dog"), ())  # and what macOS adds to every zip is not even listed as skipped
    assert read(make_zip(tmp_path / "y.zip", **{"pets/1.png": png(), "pets/2.png": png()}))[1:3] == (None, ())


def test_climbing_names_in_a_zip_write_nothing_and_do_not_become_classes(read, tmp_path):
    names = ("../../evil.png", "/abs/a.png", "..\\b\\c.png")
    (tmp_path / "box").mkdir()
    path = make_zip(tmp_path / "box/z.zip", **dict.fromkeys(names, png()))
    before = {p for p in tmp_path.rglob("*") if p.suffix == ".png"}
    pixels, labels, classes, _ = read(path)
    assert len(pixels) == 3 and labels is None and classes == ()
    assert {p for p in tmp_path.rglob("*") if p.suffix == ".png"} == before == set()
    path = make_zip(tmp_path / "box/y.zip", **{"../x/a.png": png(), "../y/a.png": png()})
    assert read(path)[2] == ("x", "y")


def test_encrypted_and_damaged_members_are_skipped(read, tmp_path):
    path = make_zip(tmp_path / "z.zip", **{"crc.png": png(), "good.png": png(), "secret.png": png()})
    data = bytearray(path.read_bytes())
    data[data.index(b"crc.png") + 40] ^= 255  # inside the stored data
    data[data.rindex(b"secret.png") - 46 + 8] |= 1  # the flag in the central directory
    path.write_bytes(data)
    pixels, _, _, skipped = read(path)
    assert len(pixels) == 1 and skipped == ("crc.png: damaged in the zip", "secret.png: encrypted")


def test_two_members_of_the_same_name_are_two_images(read, tmp_path):
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as z, pytest.warns(UserWarning, match="Duplicate"):
        z.writestr("a.png", png((1, 1, 1))), z.writestr("a.png", png((2, 2, 2)))
    assert read(tmp_path / "z.zip")[0][:, 0, 0, 0].tolist() == [1, 2]


# --- the cache ---


@pytest.fixture
def decoded(monkeypatch):
    """The names of the files that were really decoded."""
    names, decode = [], folder._decode

    def spy(file, **rest):
        names.append(file.name)
        return decode(file, **rest)

    monkeypatch.setattr(folder, "_decode", spy)
    return names


def test_a_second_read_decodes_nothing_and_returns_the_same(root, read, decoded):
    save(root / "b/a.png"), save(root / "c/a.png"), (root / "c/bad.png").touch()
    first = read()
    decoded.clear()
    second = read()
    assert decoded == []
    for result in (first, second):
        assert isinstance(result[0], np.memmap) and not result[0].flags.writeable
    assert np.array_equal(first[0], second[0]) and np.array_equal(first[1], second[1]) and first[2:] == second[2:]
    assert second[1].dtype == np.int64


@pytest.mark.parametrize("change", ["edit", "add", "remove", "rename", "mtime", "repair"])
def test_any_change_of_the_files_is_noticed_and_the_old_entry_goes(root, read, decoded, tmp_path, change):
    save(root / "a.png"), save(root / "b.png"), (root / "bad.png").touch()
    read()
    old = set((tmp_path / "cache").iterdir())
    decoded.clear()
    if change == "edit":
        stamp = (root / "a.png").stat().st_mtime_ns
        save(root / "a.png", (254, 0, 0))  # as many bytes, and the time put back: only ctime tells
        os.utime(root / "a.png", ns=(stamp, stamp))
    elif change == "mtime":
        os.utime(root / "a.png", (1, 1))
    elif change == "repair":
        save(root / "bad.png")
    else:
        {"add": lambda: save(root / "c.png"), "remove": (root / "b.png").unlink}.get(
            change, lambda: (root / "b.png").rename(root / "d.png")
        )()
    pixels, _, _, skipped = read()
    assert decoded and len(pixels) == {"add": 3, "remove": 1, "repair": 3}.get(change, 2)
    assert len(skipped) == (change != "repair")
    new = set((tmp_path / "cache").iterdir())
    assert len(new) == 2 and not new & old


def test_other_sizes_channels_and_folders_keep_their_own_entries(root, read, decoded, tmp_path):
    save(root / "a.png"), save(tmp_path / "other/a.png")
    variants = ({}, {"size": (4, 8)}, {"size": (8, 4)}, {"channels": 1}, {"path": tmp_path / "other"})
    shapes = [read(**v)[0].shape for v in variants]
    decoded.clear()
    assert [read(**v)[0].shape for v in variants] == shapes and decoded == []


def test_a_program_that_decodes_otherwise_retires_the_cache(root, read, decoded, monkeypatch):
    save(root / "a.png"), read(), decoded.clear()
    monkeypatch.setattr(folder, "VERSION", folder.VERSION + 1)
    read()
    assert decoded == ["a.png"]


def test_a_changed_zip_is_noticed(read, tmp_path):
    def bmp(colour):  # as many bytes whatever the colour
        out = io.BytesIO()
        Image.new("RGB", (8, 8), colour).save(out, "BMP")
        return out.getvalue()

    read(make_zip(tmp_path / "z.zip", **{"a.bmp": bmp(RED)}))
    assert pixel(read(make_zip(tmp_path / "z.zip", **{"a.bmp": bmp(WHITE)}))) == WHITE


def test_a_renamed_class_folder_is_noticed_though_no_file_in_it_changed(root, read):
    save(root / "x/a.png"), save(root / "y/b.png")
    assert read()[2] == ("x", "y")
    (root / "y").rename(root / "z")
    assert read()[2] == ("x", "z")


@pytest.mark.parametrize(
    "damage", ["cut npy", "no npy", "empty npy", "other npy", "grey npy", "cut json", "no json", "odd json"]
)
def test_a_damaged_cache_is_rebuilt_silently(root, read, decoded, tmp_path, capfd, damage):
    save(root / "x/a.png"), save(root / "y/b.png")
    pixels, labels, *_ = read()
    pixels = np.array(pixels)  # a map of a file that is about to be cut short must not be looked at
    how, what = damage.split()
    (path,) = (tmp_path / "cache").glob(f"*.{what}")
    if how == "no":
        path.unlink()
    elif how == "other":
        np.save(path, np.zeros((1, 3, 8, 8), np.uint8))
    elif how == "grey":
        np.save(path, np.zeros((2, 1, 8, 8), np.uint8))
    elif how == "odd":
        path.write_text(json.dumps({"count": 2, "labels": [0], "classes": ["x", "y"], "skipped": []}))
    else:
        path.write_bytes(path.read_bytes()[: 0 if how == "empty" else path.stat().st_size // 2])
    decoded.clear()
    again = read()
    assert sorted(decoded) == ["x/a.png", "y/b.png"] and capfd.readouterr() == ("", "")
    assert np.array_equal(pixels, again[0]) and np.array_equal(labels, again[1])
    decoded.clear()
    read()
    assert decoded == []


def test_a_cache_that_cannot_be_written_costs_one_warning_and_nothing_else(root, read, tmp_path, capfd):
    save(root / "x/a.png"), (root / "x/b.png").touch(), save(root / "y/c.png", WHITE)
    (tmp_path / "file").touch()
    pixels, labels, classes, skipped = result = read(cache=tmp_path / "file" / "cache")
    assert len(pixels) == 2
    assert pixel(result, 0) == RED and pixel(result, 1) == WHITE
    assert (labels.tolist(), classes, skipped) == ([0, 1], ("x", "y"), ("x/b.png: empty file",))
    out, err = capfd.readouterr()
    assert out == "" and err.startswith("warning: cannot cache") and err.count("\n") == 1


def test_a_full_disk_costs_one_warning_and_leaves_no_file(root, read, tmp_path, monkeypatch, capfd):
    save(root / "a.png")

    def fsync(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    assert pixel(read()) == RED and list((tmp_path / "cache").iterdir()) == []
    assert "no space left on device" in capfd.readouterr().err


def test_an_interrupted_run_leaves_nothing_behind(root, read, tmp_path, monkeypatch):
    save(root / "a.png")

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(folder, "_decode", interrupt)
    with pytest.raises(KeyboardInterrupt):
        read()
    assert list((tmp_path / "cache").iterdir()) == []


def test_the_cache_is_an_ordinary_npy_of_the_usable_images_only(root, read, tmp_path):
    for i in range(40):
        (root / f"{i:02}.png").write_bytes(b"" if i % 4 else png((i, i, i)))
    pixels = read()[0]
    (path,) = (tmp_path / "cache").glob("*.npy")
    on_disk = np.load(path)
    assert np.array_equal(on_disk, pixels) and on_disk[:, 0, 0, 0].tolist() == list(range(0, 40, 4))
    assert path.stat().st_size == 128 + on_disk.nbytes


def test_many_images_keep_their_order(root, read):
    values = list(range(200))
    random.Random(0).shuffle(values)
    for i, value in enumerate(values):
        (root / f"{i:03}.png").write_bytes(png((value, 0, 0), size=(4, 4) if i % 3 else (300, 300)))
    assert read(size=(2, 2))[0][:, 0, 0, 0].tolist() == values


def test_the_default_cache_follows_xdg_and_the_images_folder_is_left_alone(root, tmp_path, monkeypatch):
    save(root / "a.png")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    folder.read(root, size=(8, 8), channels=3)
    assert len(list((tmp_path / "xdg/diffusion").iterdir())) == 2
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    folder.read(root, size=(8, 8), channels=3)
    assert len(list((tmp_path / "home/.cache/diffusion").iterdir())) == 2
    assert [p.name for p in root.iterdir()] == ["a.png"]


def test_a_zip_has_the_same_classes_where_nothing_can_be_cached(read, tmp_path):
    path = make_zip(tmp_path / "z.zip", **{"pets/cat/1.png": png(), "pets/dog/1.png": png()})
    (tmp_path / "file").touch()
    _, labels, classes, _ = read(path, cache=tmp_path / "file" / "cache")
    assert (labels.tolist(), classes) == ([0, 1], ("cat", "dog"))


def test_folders_whose_names_are_no_text_are_classes_of_their_own(read, tmp_path):
    """Latin-1 names of an old archive: what cannot be shown is written out, not made alike."""
    for name in (b"caf\xe8", b"caf\xe9", b"tea\x07"):
        folder = tmp_path / "data" / os.fsdecode(name)
        folder.mkdir(parents=True)
        (folder / "1.png").write_bytes(png())
    _, labels, classes, _ = read(tmp_path / "data")
    assert classes == (r"caf\udce8", r"caf\udce9", r"tea\x07") and labels.tolist() == [0, 1, 2]
