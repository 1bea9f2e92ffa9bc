"""Why sample from weights that were never trained?

Each optimiser step is noisy; an average of the weights (Polyak & Juditsky 1992; here a moving one, in which old weights
fade exponentially) is far less so, and its samples are visibly better.  Samples, validation and best.pth use it.
Read next: checkpoint.py.
"""

import copy

import torch

# The cap on the decay after n updates; beside it the mean age, in updates, of the weights that are averaged.
WARMUPS = {
    "ratio": lambda n: (1 + n) / (10 + n),  # n/10: a tenth of the training so far, however long
    "power": lambda n: 1 - (1 + n) ** -0.75,  # about n^(3/4): of a long training a smaller share
    "none": lambda n: 1.0,
}


class EMA:
    """A shadow copy of `model`, in `.model`, that follows it at `decay`: 0 equals it, nearer 1 follows more slowly.

    warmup: what caps the decay after n updates, a key of WARMUPS.
    """

    def __init__(self, model, decay=0.9999, warmup="ratio"):
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.max_decay, self.cap = decay, WARMUPS[warmup]
        self.updates = 0

    def decay(self):
        """The decay of the next update."""
        return min(self.max_decay, self.cap(self.updates))

    @torch.no_grad()
    def update(self, model, skip=None):
        """shadow ← decay · shadow + (1 - decay) · model, after each optimiser step.

        skip: 0-dim bool tensor; where it is true the shadow stays as it is, without asking the device.
        """
        weight = 1.0 - self.decay()
        if skip is not None:
            weight = weight * (1.0 - skip.float())  # stays a tensor: foreach_lerp would read it and wait for the device
        shadow = list(self.model.parameters())
        torch._foreach_mul_(shadow, 1.0 - weight)
        torch._foreach_add_(shadow, torch._foreach_mul(list(model.parameters()), weight))
        for mine, theirs in zip(self.model.buffers(), model.buffers()):
            mine.copy_(theirs)
        self.updates += 1  # skipped ones too: to know which, the host would have to wait
