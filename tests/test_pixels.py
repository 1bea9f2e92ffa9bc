"""Bytes and numbers: the convention, batches, pictures."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from dataset import pictures
from dataset.batches import Batches
from dataset.pixels import from_uint8, to_uint8


def test_all_256_grey_levels_survive_the_round_trip():
    k = torch.arange(256, dtype=torch.uint8)
    x = from_uint8(k)
    assert x.min() == -1 and x.max() == 1
    assert torch.equal(to_uint8(x), k)
    wobble = 0.49 / 127.5
    assert torch.equal(to_uint8(x + wobble), k) and torch.equal(to_uint8(x - wobble), k)  # rounds, does not truncate


def test_values_outside_are_clamped():
    assert to_uint8(torch.tensor([-5.0, -1.0001, 1.0001, 9.0])).tolist() == [0, 0, 255, 255]


# ---------------------------------------------------------------- batches


def numbered(n, size=(2, 3)):
    """n images whose every pixel is the image's number, and labels likewise."""
    return np.broadcast_to(np.arange(n, dtype=np.uint8)[:, None, None, None], (n, 3, *size)).copy(), np.arange(n)


def batches(n=10, batch_size=4, **more):
    pixels, labels = numbered(n)
    return Batches(pixels, labels, more.pop("indices", range(n)), batch_size=batch_size, seed=0, flip=False, **more)


def test_batch_k_depends_on_seed_and_k_only():
    a, b = batches(), batches()
    later = [b(k) for k in (7, 0, 3)]
    for k, (x, y) in zip((7, 0, 3), later):
        assert torch.equal(a(k)[0], x) and torch.equal(a(k)[1], y)


def test_the_first_batch_asked_for_may_be_of_any_epoch():
    """As after a resume."""
    pixels = np.arange(4, dtype=np.uint8).reshape(4, 1, 1, 1)
    fresh, used = (Batches(pixels, None, range(4), batch_size=4, seed=0, flip=False) for _ in range(2))
    used.numbers(0)
    assert np.array_equal(fresh.numbers(1), used.numbers(1))


def test_every_epoch_shows_every_image_once_in_a_new_order():
    b = batches()
    stream = np.concatenate([b.numbers(k) for k in range(5)])  # 20 numbers: two epochs
    first, second = stream[:10], stream[10:]
    assert sorted(first) == sorted(second) == list(range(10))
    assert list(first) != list(second)


def test_another_seed_is_another_order_and_not_the_same_one_an_epoch_later():
    pixels, _ = numbered(10)
    endless = [Batches(pixels, None, range(10), batch_size=10, seed=seed, flip=False) for seed in (0, 1)]
    assert len({tuple(b.numbers(epoch)) for b in endless for epoch in (0, 1)}) == 4


def test_only_the_chosen_images_are_used_and_labels_go_with_them():
    b = batches(indices=[2, 5, 8])
    seen = set()
    for k in range(5):
        x, y = b(k)
        seen |= set(y.tolist())
        assert torch.equal(to_uint8(x)[:, 0, 0, 0].long(), y)
    assert seen == {2, 5, 8}


@pytest.mark.parametrize("n", [1, 3])
def test_fewer_images_than_the_batch_are_repeated(n):
    b = batches(n, batch_size=7)
    stream = np.concatenate([b.numbers(k) for k in range(n)])
    assert np.bincount(stream).tolist() == [7] * n
    assert b(0)[0].shape[0] == 7


def test_processes_share_the_batch_without_gap_or_overlap():
    whole, shares = batches(batch_size=6), [batches(batch_size=6, rank=r, world=3) for r in range(3)]
    for k in range(4):
        x, _ = whole(k)
        for rank, share in enumerate(shares):
            assert torch.equal(share(k)[0], x[rank::3])


def test_flips_mirror_about_half_of_the_images_left_to_right():
    pixels = np.zeros((1, 1, 2, 2), np.uint8)
    pixels[0, 0, :, 1] = 255
    b = Batches(pixels, None, [0], batch_size=1000, seed=0, flip=True)
    x, y = b(0)
    assert y is None
    mirrored = (x[:, 0, 0, 0] == 1).float().mean()
    assert 0.4 < mirrored < 0.6
    assert torch.equal(x, b(0)[0]) and not torch.equal(x, b(1)[0])
    assert ((x[:, 0, 0] == x[:, 0, 1]).all()) and set(x.unique().tolist()) == {-1.0, 1.0}
    assert not torch.equal(x, Batches(pixels, None, [0], batch_size=1000, seed=1, flip=True)(0)[0])
    for rank in (0, 1):  # an image is mirrored or not, whichever process it falls to
        share = Batches(pixels, None, [0], batch_size=1000, seed=0, flip=True, rank=rank, world=2)
        assert torch.equal(share(0)[0], x[rank::2])


def test_memory_mapped_pixels_work(tmp_path):
    pixels, labels = numbered(10)
    np.save(tmp_path / "a.npy", pixels)
    mapped = np.load(tmp_path / "a.npy", mmap_mode="r")
    b = Batches(mapped, labels, range(10), batch_size=4, seed=0, flip=True)
    assert torch.equal(b(2)[1], batches()(2)[1])


# ---------------------------------------------------------------- pictures


def test_upscale_makes_blocks():
    image = torch.tensor([[[[1, 2], [3, 4]]]], dtype=torch.uint8)
    assert pictures.upscale(image, 2)[0, 0].tolist() == [[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4], [3, 3, 4, 4]]


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_pngs_hold_exactly_the_pixels(tmp_path, channels):
    image = torch.randint(0, 256, (channels, 5, 7), dtype=torch.uint8)
    pictures.save_png(tmp_path / "a.png", image)
    with Image.open(tmp_path / "a.png") as read:
        array = np.asarray(read)
    assert read.mode == {1: "L", 3: "RGB", 4: "RGBA"}[channels]
    assert np.array_equal(array if channels > 1 else array[:, :, None], image.permute(1, 2, 0).numpy())


def test_a_grid_shows_every_image_row_by_row():
    images = torch.stack([torch.full((3, 4, 4), 10 * i, dtype=torch.uint8) for i in range(6)])
    g = pictures.grid(images, columns=3)
    assert g.shape == (3, 2 * 6 + 2, 3 * 6 + 2)
    assert [g[0, 4, 4 + 6 * c].item() for c in range(3)] == [0, 10, 20] and g[0, 10, 4].item() == 30


def test_a_grid_of_wide_or_tall_images_is_nearly_square():
    for size in ((4, 12), (12, 4)):
        _, H, W = pictures.grid(torch.zeros(12, 3, *size, dtype=torch.uint8)).shape
        assert 2 / 3 < H / W < 3 / 2


def test_numbers_spread_evenly_reach_both_ends():
    assert pictures.evenly(0, 9, 4) == [0, 3, 6, 9] and pictures.evenly(1, 3, 8) == [1, 2, 3]
    assert pictures.evenly(2, 7, 1) == [2]


def test_a_strip_has_one_row_an_image_and_one_column_a_stage():
    stages = [torch.full((2, 1, 4, 4), 50 * s, dtype=torch.uint8) for s in range(3)]
    stages = [z + torch.tensor([0, 1], dtype=torch.uint8).view(2, 1, 1, 1) for z in stages]
    g = pictures.strip(stages)
    assert [[g[0, 4 + 6 * r, 4 + 6 * c].item() for c in range(3)] for r in range(2)] == [[0, 50, 100], [1, 51, 101]]


def test_a_gif_has_every_frame_and_loops(tmp_path):
    frames = [torch.full((3, 8, 8), 60 * i, dtype=torch.uint8) for i in range(4)]
    pictures.save_gif(tmp_path / "a.gif", frames)
    with Image.open(tmp_path / "a.gif") as gif:
        assert gif.n_frames == 4 and gif.info["loop"] == 0
        times = [frame.info["duration"] for frame in ImageSequence.Iterator(gif)]
    assert times == [80, 80, 80, 1500]  # the last frame is held


def test_a_gif_of_transparent_pictures_hides_what_they_hide(tmp_path):
    clear = torch.tensor([200, 0, 0, 0], dtype=torch.uint8).view(4, 1, 1).expand(4, 8, 8)
    half = torch.tensor([200, 0, 0, 51], dtype=torch.uint8).view(4, 1, 1).expand(4, 8, 8)
    pictures.save_gif(tmp_path / "a.gif", [clear, half])
    with Image.open(tmp_path / "a.gif") as gif:
        assert [frame.convert("RGB").getpixel((0, 0)) for frame in ImageSequence.Iterator(gif)] == [
            (255, 255, 255), (244, 204, 204),
        ]  # fmt: skip


@pytest.mark.parametrize(("size", "factor"), [((32, 32), 2), ((16, 64), 4), ((64, 16), 4), ((256, 256), 1)])
def test_the_short_side_becomes_readable(size, factor):
    assert pictures.readable_scale(size) == factor
