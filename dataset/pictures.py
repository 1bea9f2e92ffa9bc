"""How do tensors become files that one can look at?  PNG, grids, strips and GIFs from uint8 images (N, C, H, W)."""

import numpy as np
import torch
from PIL import Image


def upscale(images, k):
    """Each pixel becomes a k x k block: nothing is invented, it is only larger to look at."""
    return images.repeat_interleave(k, dim=-2).repeat_interleave(k, dim=-1)


def readable_scale(size):
    """A whole factor that brings the short side to about 64 pixels: thumbnails of 32 are too small to judge."""
    return max(1, round(64 / min(size)))


def grid(images, columns=None, padding=2):
    """(N, C, H, W) uint8 -> one (C, H', W') uint8 picture, row by row, as square as N allows, on white."""
    n, C, H, W = images.shape
    columns = min(n, columns or max(1, round((n * H / W) ** 0.5)))
    h, w = H + padding, W + padding
    paper = images.new_full((C, -(-n // columns) * h + padding, columns * w + padding), 255)
    for i, image in enumerate(images):
        y, x = i // columns * h + padding, i % columns * w + padding
        paper[:, y : y + H, x : x + W] = image
    return paper


def strip(stages):
    """Stages side by side, one row an image: list of (N, C, H, W) -> (C, H', W')."""
    rows = torch.stack(stages, dim=1)  # (N, stages, C, H, W)
    return grid(rows.flatten(0, 1), columns=len(stages))


def evenly(first, last, count):
    """At most `count` whole numbers spread evenly over first..last, both included."""
    count = min(count, last - first + 1)
    return [first + round(i * (last - first) / max(1, count - 1)) for i in range(count)]


def rgb(images):
    """(..., C, H, W) uint8, grey, RGB or RGBA -> (..., 3, H, W), on white: alpha dropped would bare what it hides."""
    if images.shape[-3] == 1:
        return images.expand(*images.shape[:-3], 3, -1, -1)
    if images.shape[-3] == 3:
        return images
    colour, alpha = images[..., :3, :, :].float(), images[..., 3:, :, :].float() / 255
    return (colour * alpha + 255 * (1 - alpha)).round().to(torch.uint8)


def to_pil(image):
    """(C, H, W) uint8 with 1, 3 or 4 channels -> PIL image."""
    array = image.permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)


def save_png(path, image):
    """Write one (C, H, W) uint8 image."""
    to_pil(image).save(path, format="PNG")


def load_png(path):
    """The (C, H, W) uint8 picture that `save_png` wrote."""
    with Image.open(path) as image:
        array = np.array(image)
    return torch.from_numpy(array[:, :, None] if array.ndim == 2 else array).permute(2, 0, 1)


def save_gif(path, frames, milliseconds=80):
    """Write (C, H, W) uint8 frames as a GIF that loops for ever and holds its last frame for a second and a half."""
    pictures = [to_pil(rgb(f)) for f in frames]
    times = [milliseconds] * (len(pictures) - 1) + [1500]
    pictures[0].save(path, format="GIF", save_all=True, append_images=pictures[1:], duration=times, loop=0)
