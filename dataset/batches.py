"""Which images are in batch number k?  A function of (seed, k) and of nothing else.

So a resumed run sees exactly the images that the interrupted one would have seen, with no state to save.  Imagine all
epochs written one after the other, each a fresh shuffle of all images: batch k is the k-th slice of that endless row.
Read next: ../trainer.py.
"""

import numpy as np
import torch

from dataset.pixels import from_uint8


class Batches:
    """Endless training batches from one uint8 array.

    pixels: (N, C, H, W) uint8, in memory or memory-mapped.  labels: (N,) int or None.  indices: which of the N to use.
    flip: mirror each image left-right with probability 1/2.  rank, world: this process takes every world-th image of
    the batch.  On a GPU the pixels are kept there as uint8 when they fit (`resident`), else sent batch by batch.
    """

    def __init__(self, pixels, labels, indices, *, batch_size, seed, flip, device="cpu", rank=0, world=1):
        self.indices, self.batch_size, self.seed, self.flip = np.asarray(indices), batch_size, seed, flip
        self.device, self.rank, self.world = torch.device(device), rank, world
        self.labels = None if labels is None else torch.as_tensor(np.asarray(labels), dtype=torch.long)
        self.pixels, self.resident = pixels, False
        if self.device.type != "cpu":
            self.resident = pixels.nbytes < torch.get_device_module(self.device).mem_get_info(self.device)[0] // 4
        if self.resident:
            self.pixels = torch.tensor(pixels, device=self.device)  # copies: a memory map may be read-only
            self.labels = None if self.labels is None else self.labels.to(self.device)
        self._epoch, self._order = -1, None

    def _shuffle(self, epoch):
        if epoch != self._epoch:
            self._epoch, self._order = epoch, np.random.default_rng((self.seed, epoch)).permutation(self.indices)
        return self._order

    def numbers(self, k):
        """The image numbers of batch k: (batch_size,) int64, over all processes."""
        n, taken = len(self.indices), []
        place, end = k * self.batch_size, (k + 1) * self.batch_size
        while place < end:  # a batch may reach over the end of an epoch, or of several
            epoch, start = divmod(place, n)
            piece = self._shuffle(epoch)[start : start + end - place]
            taken.append(piece)
            place += len(piece)
        return np.concatenate(taken)

    def __call__(self, k):
        """Batch k of this process: x_0 (B, C, H, W) float in [-1, 1], y (B,) long or None, on the device."""
        mine = slice(self.rank, None, self.world)
        numbers = self.numbers(k)[mine]
        if self.resident:
            where = self._send(numbers)
            x, y = self.pixels[where], None if self.labels is None else self.labels[where]
        else:
            order = np.argsort(numbers)  # a memory-mapped file likes to be read forwards
            picked = np.empty((len(numbers), *self.pixels.shape[1:]), np.uint8)
            picked[order] = self.pixels[numbers[order]]
            x = self._send(picked)
            y = None if self.labels is None else self._send(self.labels[torch.from_numpy(numbers)])
        if self.flip:
            flips = np.random.default_rng((self.seed, k, 1)).random(self.batch_size)[mine] < 0.5
            x = torch.where(self._send(flips)[:, None, None, None], x.flip(-1), x)
        return from_uint8(x), y

    def _send(self, array):
        tensor = torch.as_tensor(array)
        if self.device.type != "cpu":
            return tensor.pin_memory().to(self.device, non_blocking=True)  # does not make the host wait
        return tensor.to(self.device)
