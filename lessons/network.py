"""What does the network look at, and what has it kept?  Read next: ../models/attention.py."""

import torch
import torch.nn.functional as F
from matplotlib.patches import Rectangle

import cli
from config import UserError
from dataset.pixels import from_uint8, to_uint8
from diffusion.samplers import ddim
from evaluation.nearest import nearest
from lessons import figure
from models.attention import Attention, linear_attention, phi

DARK = 0.35  # brightness of the places that are not looked at: the picture stays to be seen


def attention_weights(module, x):
    """(B, heads, N, N): how much each of the N pixels of x takes from each other one; rows sum to 1.

    The network itself never forms this matrix: forward() computes the same sums without it.
    """
    q, k, _ = module.heads_of(x)
    if module.attend is linear_attention:
        scores = phi(q) @ phi(k).transpose(-2, -1)
        return scores / scores.sum(dim=-1, keepdim=True)
    return (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(dim=-1)


def layers(model):
    """{name: module} of every attention layer, in the order of the forward pass."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Attention)}


@torch.no_grad()
def attention(lab, layer=None, level=None, places=4, steps=None, label=None, guidance=None):
    """What a pixel looks at: attention weights of one layer, for a few pixels, over the network's guess of the picture.

    The square is the pixel that asks and bright is where it looks; each column is a head, with a habit of its own.
    Some look far away, at one and the same place of every repeat of a motif: convolutions need many layers for that.
    """
    known = layers(lab.model)
    if not known:
        raise UserError("attention: this network has no attention layer; try another --ckpt")
    layer = layer or next((name for name in known if name.startswith("decoder")), next(iter(known)))
    if layer not in known:
        raise UserError(f"--layer {layer}: unknown; this network has {', '.join(known)}")
    level = max(1, round(0.3 * lab.T)) if level is None else level
    cli.check_level("--level", level, lab.T)
    y = lab.labels(label, [0])
    x, _ = lab.begin([0])
    denoise = lab.denoiser(y, guidance)
    timesteps = sorted({level, *lab.spaced(steps)}, reverse=True)
    if timesteps[0] > level:
        x = next(s.x for s in ddim(denoise, lab.schedule, x, timesteps=timesteps) if s.t == level)
    seen = []
    hook = known[layer].register_forward_hook(lambda module, inputs, output: seen.append(inputs[0][:1]))
    try:
        x0_hat, _ = denoise(x, level)  # with guidance a batch of two, the one with the class first
    finally:
        hook.remove()
    h, w = seen[0].shape[-2:]
    weights = attention_weights(known[layer], seen[0])[0]  # (heads, N, N)

    picks = [(i + 0.5) / places for i in range(places)]  # on the diagonal of the picture, out of step with its centre
    asked = [(int(p * h), int((p * 1.7 + 0.1) % 1 * w)) for p in picks]
    H, W = x.shape[-2:]
    rows = []
    for row, column in asked:
        heat = weights[:, row * w + column].reshape(-1, 1, h, w)
        heat = F.interpolate(heat / heat.amax(dim=(-2, -1), keepdim=True), (H, W), mode="nearest")
        # dark where the pixel does not look, the picture itself where it looks most
        rows.append(torch.cat([x0_hat, -1 + (x0_hat + 1) * (DARK + (1 - DARK) * heat)]))
    fig = figure.wall(
        torch.stack(rows),
        "What does a pixel look at?",
        f"layer {layer}, {h} x {w} places, at t = {level}; bright: looked at, square: the place that looks",
        row_names=[f"place {i + 1}" for i in range(places)],
        column_names=[r"guess $\hat{x}_0$", *(f"head {i + 1}" for i in range(len(weights)))],
        widest=160,
    )
    sheet_h, sheet_w = fig.axes[0].images[0].get_array().shape[:2]
    cell_h, cell_w = (sheet_h + figure.GAP) / places, (sheet_w + figure.GAP) / (len(weights) + 1)
    box_h, box_w = (cell_h - figure.GAP) / h, (cell_w - figure.GAP) / w
    for i, (row, column) in enumerate(asked):
        for j in range(len(weights) + 1):
            corner = j * cell_w + column * box_w - 0.5, i * cell_h + row * box_h - 0.5
            fig.axes[0].add_patch(Rectangle(corner, box_w, box_h, fill=False, edgecolor="#ff2d55", linewidth=2))
    return fig


def memorise(lab, n=6, neighbours=4, steps=None, label=None, guidance=None, data=None):
    """Made pictures beside the training pictures nearest to them, and whether they are nearer than new ones would be.

    A copy would be a column of look-alikes with a distance near 0.  Compare the two histograms: made pictures may lie
    about as near to the training pictures as held-out ones do, and a model that memorises lies far to the left.
    """
    photos, numbers = lab.photos(data), range(n)
    y = lab.labels(label, numbers)
    made = []
    many = max(n, 64)  # enough for a histogram; the first n are shown
    for i in range(0, many, 16):
        batch = range(i, i + 16)
        x, _ = lab.begin(batch)
        made.append(lab.draw(x, lab.labels(label, batch), steps, guidance).cpu())
    made = to_uint8(torch.cat(made)[:many])
    neighbours = min(neighbours, len(photos.train))
    distances, indices = nearest(made, photos.train, neighbours)
    near_made, near_held_out = distances[:, 0], nearest(photos.val, photos.train)[0][:, 0]
    print(
        f"nearest training picture, in grey levels (median): made {near_made.median():.1f}, "
        f"held out {near_held_out.median():.1f}"
    )
    rows = torch.cat([made[:n, None], photos.train[indices[:n]]], dim=1)
    names = lab.named(y) or [""] * n
    fig = figure.wall(
        from_uint8(rows.transpose(0, 1)),
        "Has it learned, or memorised?",
        f"top: made; below: the nearest of {len(photos.train):,} training pictures of {photos.name}; "
        "numbers: how near, rms grey levels",
        row_names=["made", *(f"nearest {i + 1}" for i in range(neighbours))],
        column_names=[f"{name}\n{d:.0f}" for name, d in zip(names, near_made.tolist())],
        below=260,
        widest=96,
    )
    width = fig.get_size_inches()[0] * figure.DPI
    axes = figure.panel(fig, 80, 60, width - 120, 150)
    edges = torch.linspace(0, 1.05 * float(torch.cat([near_made, near_held_out]).max()), 41).numpy()
    for values, name in ((near_held_out, "held out"), (near_made, "made")):
        axes.hist(values.numpy(), bins=edges, density=True, alpha=0.6, label=f"{name} ({len(values)})")
    axes.set(title="Distance to the nearest training picture", xlabel="rms, grey levels", ylabel="density")
    axes.legend()
    return fig
