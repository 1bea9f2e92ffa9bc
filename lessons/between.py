"""What lies between two pictures?  Between two noises a path of whole pictures; between two photos a blend to mend.

Read first: walks.py, whose walks these are.
"""

import math

import torch

import cli
from config import UserError
from dataset import pictures
from diffusion.samplers import ddim
from diffusion.steps import last, spaced
from lessons import figure

WORK = 16  # pictures in one batch, as in generate.py


def lerp(a, b, w):
    """The straight line from a (w = 0) to b (w = 1)."""
    return (1 - w) * a + w * b


def slerp(a, b, w):
    """The arc from a (w = 0) to b (w = 1), image by image: (B, C, H, W) each.

    Half way along the straight line between two independent noises the variance is 1/2, which no training picture ever
    had.  The arc turns the direction at constant speed and leaves the length alone: |a| becomes |b| in a straight line.
    """
    p, q = a.flatten(1), b.flatten(1)
    p_length, q_length = p.norm(dim=1, keepdim=True), q.norm(dim=1, keepdim=True)
    p, q = p / p_length, q / q_length
    angle = (p * q).sum(dim=1, keepdim=True).clamp(-1, 1).acos()
    # sin((1-w)Ω) / sin Ω · p  +  sin(wΩ) / sin Ω · q: the great circle; for Ω -> 0 it is the straight line
    sine = angle.sin()
    arc = ((1 - w) * angle).sin() / sine * p + (w * angle).sin() / sine * q
    direction = torch.where(sine > 1e-6, arc, lerp(p, q, w))
    return (direction * lerp(p_length, q_length, w)).reshape(a.shape)


PATHS = {"slerp": slerp, "lerp": lerp}


def path(noises, frames, between):
    """`frames` stages from noises[0] through all of them to noises[-1], evenly spaced: list of (B, C, H, W)."""
    legs, stages = len(noises) - 1, []
    for i in range(frames):
        place = i * legs / max(1, frames - 1)
        leg = min(int(place), legs - 1)
        stages.append(between(noises[leg], noises[leg + 1], place - leg))
    return stages


def morph(lab, seeds=(0, 1), frames=40, n=4, along="slerp", steps=None, label=None, guidance=None, upscale=4):
    """A film from the pictures of one seed to those of the next: every frame is a picture made from noise in between.

    Each frame is a whole picture and not a cross-fade, so motifs jump or grow where two of them meet.  With --along
    lerp the frames half way go plain and pale: the noise there is too weak, and the network takes that for less detail.
    """
    if len(seeds) < 2:
        raise UserError(f"--seeds {','.join(map(str, seeds))}: a morph needs two seeds or more, like --seeds 0,1")
    numbers = range(n)
    y = lab.labels(label, numbers)
    cli.check_upscale(upscale, frames * n * math.prod((lab.config.data.channels, *lab.config.data.size)))
    stages = path([lab.begin(numbers, seed)[0] for seed in seeds], frames, PATHS[along])
    flat, labels = torch.cat(stages), None if y is None else y.repeat(frames)
    done = []
    for i in range(0, len(flat), WORK):
        some = slice(i, i + WORK)
        done.append(lab.draw(flat[some], None if labels is None else labels[some], steps, guidance))
    films = torch.cat(done).reshape(frames, n, *flat.shape[1:])
    return [pictures.grid(pictures.upscale(figure.visible(film), upscale), columns=min(n, 4)) for film in films]


def interpolate(lab, levels=(), mixtures=7, picture=0, other=1, steps=None, data=None):
    """Two real pictures are noised to level t, mixed there, and denoised: one row a level, one column a mixture.

    In the first row nothing is noised, so the middle is a double exposure; further down the network mends it into
    one picture of its own kind.  The more noise, the freer it is, until at T the ends are no longer the two pictures.
    """
    levels = lab.levels(levels or [round(lab.T * share) for share in (0, 0.2, 0.4, 0.6, 0.8, 1)])
    a, b = lab.photo(picture, data), lab.photo(other, data, flag="--other")
    ratios = [i / (mixtures - 1) for i in range(mixtures)]
    rows = [meet(lab, a, b, t, ratios, lab.spaced(steps)) for t in levels]
    return figure.wall(
        torch.stack(rows),
        "Where can two pictures meet?",
        "two real pictures (left and right), noised to level t with one noise, mixed there, and denoised",
        row_names=[f"t = {t}" for t in levels],
        column_names=[f"{1 - w:.0%} + {w:.0%}" for w in ratios],
    )


def meet(lab, a, b, t, ratios, timesteps):
    """a and b (1, C, H, W) noised to level t with the same noise, mixed in these ratios, and denoised by DDIM."""
    eps, _ = lab.begin([0])
    level = torch.tensor([t], device=lab.device)
    # The same noise on both sides, so that every mixture is noised exactly as much as level t says
    noised = [lab.diffusion.q_sample(x, level, eps) for x in (a, b)]
    mixed = torch.cat([lerp(*noised, w) for w in ratios])
    if t == 0:
        return mixed
    count = max(1, round(len(timesteps) * t / lab.T))  # strides as long as those of a whole walk
    return lab.finished(last(ddim(lab.denoiser(), lab.schedule, mixed, timesteps=spaced(t, count))))
