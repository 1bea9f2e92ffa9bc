"""What does noise do to a picture, and how fast?  The forward process, looked at.  Read next: walks.py."""

import torch

from dataset import pictures
from dataset.pixels import from_uint8
from diffusion.process import GaussianDiffusion
from diffusion.schedule import cosine, linear
from lessons import figure


def both(T):
    """{"linear": Schedule, "cosine": Schedule} with T levels; the linear one's betas, made for T = 1000, are scaled.

    They stay below 1, however small T is.
    """
    scale = 1000 / T
    return {"linear": linear(T, min(0.5, 1e-4 * scale), min(0.999, 0.02 * scale)), "cosine": cosine(T)}


def forward(lab, levels=(), picture=0, data=None):
    """One real picture at rising noise levels, under the linear and the cosine schedule.

    Go down a column: at the same t the linear schedule has drowned the picture, and the cosine one has not yet.  The
    numbers are the share of the picture's variance that is left, so equal numbers look equally noisy in both rows.
    """
    x_0 = lab.photo(picture, data)
    levels = lab.levels(levels)
    eps, _ = lab.begin([0])
    of = both(lab.T)
    rows = [GaussianDiffusion(s).q_sample(x_0, torch.tensor(levels), eps) for s in of.values()]  # all levels at once
    columns = [f"t = {t}\n" + "  ".join(f"{s.alpha_bar[t]:.0%}" for s in of.values()) for t in levels]
    return figure.wall(
        torch.stack(rows),
        "A picture turns into noise",
        "one picture, one noise; below each t: the share of the picture's variance that is left, linear and cosine",
        row_names=list(of),
        column_names=columns,
    )


def schedules(lab):
    """Four ways to draw a schedule: beta, alpha-bar, signal-to-noise ratio, and its logarithm; linear beside cosine.

    The linear schedule spends its last third where hardly any picture is left, while the cosine falls evenly in
    alpha-bar.  In log-SNR you see what a network meets: a straight piece means that every t is equally much harder.
    """
    fig = figure.blank("How fast does a picture turn into noise?", f"T = {lab.T} levels", height=745)
    panels = (
        ("β: variance added in step t", "β", lambda s: s.betas, "log"),
        ("ᾱ: share of the picture's variance that is left", "ᾱ", lambda s: s.alpha_bar, "linear"),
        ("Signal-to-noise ratio ᾱ / (1 - ᾱ)", "SNR", lambda s: s.snr, "linear"),
        ("The same as a logarithm", "log SNR", lambda s: s.snr.log(), "linear"),
    )
    t = torch.arange(1, lab.T + 1)
    for i, (title, label, values, scale) in enumerate(panels):
        axes = figure.panel(fig, 80 + 520 * (i % 2), 405 - 330 * (i // 2), 430, 230)
        for name, schedule in both(lab.T).items():
            axes.plot(t, values(schedule)[1:], label=name)
        axes.set(title=title, xlabel="t", ylabel=label, yscale=scale)
        if label == "SNR":
            axes.set_ylim(0, 10)
        axes.legend()
    return fig


def loss(lab, images=64, points=24, data=None):
    """The network's error against the noise level, told in each of the three predictions, seen and held-out pictures.

    Guessing the noise is hard where there is little of it (left) and guessing the picture where little is left of it
    (right), and v is a mixture of both.  Where the dashed curve (held out) lies far above the other,
    it has memorised.
    """
    photos = lab.photos(data)
    levels = lab.levels((), points, low=1)
    sets = {"seen": photos.train, "held out": photos.val}
    # pictures from everywhere: the files of a folder lie class by class
    sets = {name: from_uint8(x[pictures.evenly(0, len(x) - 1, images)]) for name, x in sets.items()}
    curves = {name: errors(lab, x, levels) for name, x in sets.items()}
    count = " and ".join(f"{len(x)} {name}" for name, x in sets.items())
    predicted = "F of EDM" if lab.config.diffusion.process == "edm" else lab.diffusion.prediction
    fig = figure.blank(
        "Where is the network's task hard?",
        f"mean squared error over pictures of {photos.name}, {count}; the network predicts {predicted}",
        height=520,
    )
    axes = figure.panel(fig, 90, 70, 940, 320)
    names = {"x0": "the picture", "eps": "the noise", "v": "the mixture v"}
    for (key, name), colour in zip(names.items(), figure.COLOURS):
        axes.plot(levels, curves["seen"][key], color=colour, label=f"{name}: seen in training")
        axes.plot(levels, curves["held out"][key], "--", color=colour, label=f"{name}: held out")
    axes.set(xlabel="noise level t", ylabel="mean squared error", yscale="log", ylim=(1e-4, 2))
    axes.legend(ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0), fontsize=8)
    return fig


@torch.no_grad()
def errors(lab, x_0, levels):
    """{"x0" | "eps" | "v": (levels,)}: the mean squared error of each prediction, the same noise at every level."""
    x_0 = x_0.to(lab.device)
    found = {"x0": [], "eps": [], "v": []}
    eps, _ = lab.begin(range(len(x_0)))
    denoise = lab.denoiser(clip=False)
    for level in levels:
        t = torch.full((len(x_0),), level, device=lab.device)
        x0_hat, eps_hat = denoise(lab.diffusion.q_sample(x_0, t, eps), level)
        a, b = lab.diffusion.signal[level].item(), lab.diffusion.noise[level].item()
        wrong = {"x0": x0_hat - x_0, "eps": eps_hat - eps}
        wrong["v"] = a * wrong["eps"] - b * wrong["x0"]  # v = √ᾱ ε - √(1-ᾱ) x_0 is linear, so its error is too
        for key, difference in wrong.items():
            found[key].append(difference.square().mean().item())
    return found
