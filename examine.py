"""How good is the network by now?  Validation loss, samples, and how far they are from the data.

Always of the averaged weights.  The Trainer calls these functions at every evaluation.  Read first: trainer.py.
"""

import numpy as np
import torch

import views
from dataset import pictures
from dataset.pixels import from_uint8, to_uint8
from diffusion.samplers import ddim
from diffusion.steps import begin, image_noise, spaced
from evaluation import compare


@torch.no_grad()
def validate(trainer):
    """Loss of the EMA weights on fixed images, fixed noise and fixed timesteps spread evenly over 1..T, by quarter.

    Returns {"val_loss", "val_q1", ... "val_q4"}; they change only when the weights do.
    Where T is less than 4, a quarter may have no level: NaN.
    """
    config, group, T = trainer.config, trainer.group, trainer.diffusion.T
    n = len(trainer.val)
    generator = np.random.default_rng((config.train.seed, 2))
    t = torch.from_numpy(1 + (generator.permutation(n) + 0.5) * T // n).long()
    quarter = (t - 1) * 4 // T
    losses = torch.zeros(n, dtype=torch.float64)
    size = config.train.batch_size // group.world
    for i in range(group.rank * size, n, group.world * size):  # each process takes every world-th batch
        trainer.check_stop()
        some = slice(i, i + size)
        numbers = trainer.val[some]
        x_0 = from_uint8(torch.from_numpy(np.ascontiguousarray(trainer.images.pixels[numbers])).to(trainer.device))
        labelled = config.model.num_classes
        y = torch.from_numpy(trainer.images.labels[numbers]).to(trainer.device) if labelled else None
        eps = image_noise(config.train.seed, range(i, i + len(x_0)))(x_0)
        with trainer.autocast():
            loss = trainer.diffusion.loss(trainer.ema.model, x_0, y, t=t[some].to(trainer.device), eps=eps)
        losses[some] = loss.double().cpu()
    losses = group.sum(losses.to(trainer.device)).cpu()
    quarters = {name: losses[quarter == q].mean().item() for q, name in enumerate(views.QUARTERS)}
    return {"val_loss": losses.mean().item(), **quarters}


@torch.no_grad()
def sample(trainer, n):
    """n pictures of the EMA weights from fixed noise, uint8 (n, C, H, W), and the first one's walk: a list of
    (2, C, H, W), x_t and x0-hat of each stage.
    """
    stages = []
    drawn = drawn_batches(trainer, range(n), lambda s: stages.append(to_uint8(torch.cat([s.x[:1], s.x0[:1]])).cpu()))
    return torch.cat(drawn), stages


def drawn_batches(trainer, numbers, look=lambda stage: None):
    """Batches of the pictures with these numbers, uint8 on the CPU: no more memory than a training step, however many.

    look: is shown each stage of the first batch.
    """
    size = trainer.config.train.batch_size // trainer.group.world
    drawn = []
    for i in range(0, len(numbers), size):
        with trainer.autocast():
            for stage in walk(trainer, numbers[i : i + size]):
                trainer.check_stop()
                if i == 0:
                    look(stage)
        drawn.append(to_uint8(stage.x).cpu())
    return drawn


def walk(trainer, numbers):
    """DDIM on the EMA weights for the pictures with these numbers, classes in turn."""
    config, diffusion, sample = trainer.config, trainer.diffusion, trainer.config.sample
    x, noise_like = begin(config.train.seed, numbers, (config.data.channels, *config.data.size), trainer.device)
    classes = config.model.num_classes
    y = torch.tensor(numbers, device=trainer.device) % classes if classes else None
    denoise = diffusion.denoiser(trainer.ema.model, y, guidance=sample.guidance)
    levels = spaced(diffusion.T, sample.steps)
    return ddim(denoise, diffusion.schedule, x, timesteps=levels, eta=sample.eta, noise_like=noise_like)


@torch.no_grad()
def distance(trainer):
    """Distances of samples and as many training images, under their names: opt-in by train.distance_images."""
    n, group = trainer.config.train.distance_images, trainer.group
    if not n:
        return {}
    drawn = drawn_batches(trainer, range(group.rank, n, group.world))
    drawn = torch.cat([part for share in group.gather(drawn) for part in share])
    indices = trainer.batches.indices
    chosen = indices[np.arange(n) * len(indices) // n]  # evenly: the files of a folder lie class by class
    real = torch.from_numpy(np.ascontiguousarray(trainer.images.pixels[chosen]))
    found = compare.compare(pictures.rgb(drawn), pictures.rgb(real), trainer.extract)
    return {name: found[name] for name in compare.names(trainer.extract.name)}
