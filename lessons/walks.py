"""How does a picture come out of noise, and what changes it?  Walks with every knob turned.

Read next: ../diffusion/samplers.py for the walks themselves, between.py for what lies between two pictures.
"""

import time

import torch

import cli
import sampling
from config import UserError
from diffusion.samplers import SAMPLERS, ddim
from diffusion.steps import counted, image_noise, last
from lessons import figure
from lessons.lab import rms


def denoise(lab, levels=(), steps=None, label=None, guidance=None, picture=0, data=None):
    """What the network thinks the picture is, at chosen levels of a walk, and of a real picture under noise.

    From pure noise the best guess is a blur, the mean of all that it could become (or coloured noise, where min-SNR
    weights kept the first levels out of the training), and each level settles smaller things: colours, then the motif,
    then edges.  Below, the same network guesses a real picture in one jump, without being told a label.
    """
    wanted = lab.levels(levels)
    y = lab.labels(label, [0])
    x, noise_like = lab.begin([0])
    denoiser = lab.denoiser(y, guidance)
    blind = lab.denoiser()  # the class of a photo is not told to the network
    timesteps = sorted({*lab.spaced(steps), *(t for t in wanted if t > 0)}, reverse=True)
    with torch.no_grad():
        walk, x_t = {}, x
        for t, step in zip(timesteps, ddim(denoiser, lab.schedule, x, timesteps=timesteps, noise_like=noise_like)):
            walk[t], x_t = (x_t, step.x0), step.x  # a step's guess is of the level that it left
        walk[0] = (x_t, x_t)
        x_0, jump = lab.photo(picture, data), {}
        for t in wanted:
            x_t = lab.diffusion.q_sample(x_0, torch.tensor([t], device=lab.device), x)
            jump[t] = (x_t, x_t if t == 0 else blind(x_t, t)[0])
    columns = wanted[::-1]
    rows = [torch.cat([stages[t][i] for t in columns]) for stages in (walk, jump) for i in (0, 1)]
    return figure.wall(
        torch.stack(rows),
        "What does the network think it sees?",
        "above: a walk from pure noise with its guesses; below: a real picture, noised to t and guessed in one jump",
        row_names=["walk: $x_t$", r"its guess $\hat{x}_0$", "real: $x_t$", r"its guess $\hat{x}_0$"],
        column_names=[f"t = {t}" for t in columns],
    )


def steps(lab, counts=(), n=4, label=None, guidance=None):
    """The same noise in few steps and in many: what it costs, and how far it is from the full chain.

    The first steps settle the layout and the others sharpen it: the distance falls while the time grows in proportion.
    Where your eye sees no change from one column to the next, more steps buy nothing.
    """
    for count in counts:
        cli.check_level("--counts", count, lab.T)
    counts = sorted({*(counts or (c for c in (5, 10, 25, 50, 100, 250) if c < lab.T)), lab.T})
    numbers = range(n)
    y = lab.labels(label, numbers)
    found, seconds = [], []
    for count in counts:
        x, _ = lab.begin(numbers)
        began = time.perf_counter()
        found.append(lab.draw(x, y, count, guidance).cpu())
        seconds.append((time.perf_counter() - began) / n)
    distances = [rms(x - found[-1]).mean().item() for x in found[:-1]]
    print("steps  seconds a picture  distance to the full chain (rms, pixels in -1..1)")
    for count, spent, distance in zip(counts, seconds, [*distances, 0.0]):
        print(f"{count:>5}  {spent:>17.2f}  {distance:.4f}")
    fig = figure.wall(
        torch.stack(found, dim=1),
        "How many steps does it take?",
        "each row begins with the same noise; DDIM without fresh noise",
        row_names=lab.named(y),
        column_names=[f"{c} steps" for c in counts],
        below=300,
    )
    width = fig.get_size_inches()[0] * figure.DPI
    half = (width - 220) / 2
    axes = figure.panel(fig, 90, 60, half, 190)
    axes.loglog(counts[:-1], distances, "o-")
    axes.set(title="Distance to the full chain", xlabel="steps", ylabel="rms, pixels in -1..1")
    axes = figure.panel(fig, 90 + half + 90, 60, half, 190)
    axes.loglog(counts, seconds, "o-", color=figure.COLOURS[1])
    axes.set(title="Time", xlabel="steps", ylabel="seconds a picture")
    for plot in fig.axes[1:]:
        plot.minorticks_off()
        plot.set_xticks(counts, [str(c) for c in counts], fontsize=7.5)
    return fig


def samplers(lab, steps=None, n=4, label=None, guidance=None):
    """The same noise through every sampler, with the number of network evaluations that each used.

    Those that draw no noise on the way end in nearly the same picture: they follow one and the same path and differ in
    how well.  Those that draw noise end in other pictures of the same kind, or in grainy ones if the levels are few.
    """
    numbers = range(n)
    y = lab.labels(label, numbers)
    found, names = [], []
    for name, sampler in SAMPLERS.items():
        denoiser, calls = counted(lab.denoiser(y, guidance))
        timesteps = lab.spaced(1 if sampling.chooses_its_steps(name) else steps, name)
        x, noise_like = lab.begin(numbers)
        began = time.perf_counter()
        walk = sampler(denoiser, lab.schedule, x, timesteps=timesteps, noise_like=noise_like)
        found.append(lab.finished(last(walk)).cpu())
        names.append(f"{name}\n{len(calls)} evaluations\n{(time.perf_counter() - began) / n:.2f} s")
    return figure.wall(
        torch.stack(found, dim=1),
        "The same noise through every sampler",
        f"{len(lab.spaced(steps))} steps, but for ode; evaluations of the network, and seconds a picture",
        row_names=lab.named(y),
        column_names=names,
        widest=130,
    )


def eta(lab, etas=(0.0, 0.25, 0.5, 0.75, 1.0), draws=4, steps=None, label=None, guidance=None):
    """DDIM's eta from 0 (no fresh noise) to 1 (as much as DDPM): one start, several draws of the noise on the way.

    In the first column all rows are the same picture: at eta = 0 the first noise decides everything.  To the right
    they part, since more and more of the picture is decided on the way.
    """
    timesteps = lab.spaced(steps)
    y = lab.labels(label, [0])
    columns = []
    for value in etas:
        sampling.check_eta(lab.schedule, timesteps, value, flag="--etas")
        x, _ = lab.begin([0])
        fresh = image_noise(lab.seed + 1, range(draws))  # one generator a row: every column draws the same noise
        walk = ddim(
            lab.denoiser(None if y is None else y.repeat(draws), guidance),
            lab.schedule,
            x.repeat(draws, 1, 1, 1),
            timesteps=timesteps,
            eta=value,
            noise_like=fresh,
        )
        columns.append(lab.finished(last(walk)))
    return figure.wall(
        torch.stack(columns, dim=1),
        "How much of the picture is decided on the way?",
        f"every picture begins with the same noise; {len(timesteps)} steps of DDIM",
        row_names=[f"draw {i + 1}" for i in range(draws)],
        column_names=[f"η = {value:g}" for value in etas],
        widest=130,
    )


def seeds(lab, n=5, steps=None, guidance=None):
    """The same noise with every label, and the same label with every noise.

    Go along a row: the noise is the same and the motif changes, but colours and the place of light and dark tend to
    stay.  Go down a column: the label is the same and all else changes: the noise holds what the label leaves open.
    """
    count, rows = max(1, len(lab.classes)), []
    for seed in range(lab.seed, lab.seed + n):
        x, _ = lab.begin([0], seed)
        y = torch.arange(count, device=lab.device) if lab.classes else None
        rows.append(lab.draw(x.repeat(count, 1, 1, 1), y, steps, guidance))
    return figure.wall(
        torch.stack(rows),
        "What does the noise decide, and what the label?",
        "rows share the noise, columns the label",
        row_names=[f"seed {s}" for s in range(lab.seed, lab.seed + n)],
        column_names=lab.classes,
    )


def guidance(lab, scales=(0.0, 1.0, 1.5, 3.0, 6.0, 12.0), steps=None):
    """Guidance from 0 (the label is not heard) upwards, for every class, from the same noise.

    At 0 the rows hold whatever the noise suggests, at 1 what the network learned, and a little above the motif gets
    clearer.  Far above, colours burn out and detail turns to stencil: the label is obeyed and the data forgotten.
    """
    if not lab.classes:
        raise UserError("guidance: the model has no classes, so there is nothing to guide by; try another --ckpt")
    (x, _), y = lab.begin(range(len(lab.classes))), torch.arange(len(lab.classes), device=lab.device)
    rows = [lab.draw(x, y, steps, scale) for scale in scales]
    return figure.wall(
        torch.stack(rows),
        "How loudly is the label spoken?",
        "columns share noise and label; 1 is the conditional prediction, 0 the unconditional one",
        row_names=[f"scale {s:g}" for s in scales],
        column_names=lab.classes,
    )
