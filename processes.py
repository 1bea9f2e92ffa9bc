"""How do several processes train one model?

`torchrun --nproc-per-node=N main.py ...` starts N copies of the program; each takes its share of every batch and the
gradients are averaged by PyTorch's own DistributedDataParallel.  Without torchrun there is one process, and sharing
costs nothing.  Read next: trainer.py.
"""

import gc
import os
import time
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

import machine
from config import UserError


@dataclass(frozen=True)
class Processes:
    """rank: number of this process, 0..world-1.  device: where it computes."""

    rank: int
    world: int
    device: torch.device

    @property
    def main(self):
        """Only this one writes and prints."""
        return self.rank == 0

    def sum(self, tensor):
        """The sum of `tensor` over all processes."""
        if self.world > 1:
            tensor = tensor.clone()
            dist.all_reduce(tensor)
        return tensor

    def wait(self):
        """Until every process has come here."""
        if self.world > 1:
            dist.barrier()

    def gather(self, thing):
        """The list of every process's `thing` (anything that pickles), by rank, in every process."""
        things = [thing]
        if self.world > 1:
            things = [None] * self.world
            dist.all_gather_object(things, thing)
        return things

    def main_first(self, work):
        """work(), in the main process before the others: it downloads or fills a cache, they find it there.

        If it is refused there, with a UserError, the others end too, and leave it to the main one to say why.
        """
        result = refusal = None
        if self.main:
            try:
                result = work()
            except UserError as error:
                refusal = error
        if any(self.gather(refusal is not None)):
            if refusal:
                raise refusal
            time.sleep(10)  # when one process ends, torchrun ends the others, too: the main one must have had its say
            raise SystemExit(2)
        return result if self.main else work()

    def main_only(self, work):
        """work() in the main process; the others wait until it is done, and end if it is refused."""
        self.main_first(lambda: work() if self.main else None)


def start(device="auto"):
    """Join the other processes, if torchrun started any.  device: auto | cpu | cuda | cuda:1.

    Raises UserError for a device that is not there, and for what a cluster left in the environment.
    """
    alone = "unset WORLD_SIZE, or start several processes by torchrun, which sets it and the others"
    try:
        world, local = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("LOCAL_RANK", 0))
        beside = int(os.environ.get("LOCAL_WORLD_SIZE", world))  # processes on this machine
    except ValueError as error:
        raise UserError(f"WORLD_SIZE, LOCAL_RANK or LOCAL_WORLD_SIZE is no number ({error}): {alone}") from None
    if world < 1:
        raise UserError(f"WORLD_SIZE {world}: {alone}")
    if beside > 1 and device.startswith("cuda:"):
        raise UserError(f"--device {device}: {beside} processes need a device each; use --device cuda")
    device = machine.use_device(device, local)
    if world > 1 and not dist.is_initialized():
        # Default arguments in this module capture whatever group exists when it is imported: so it is imported now,
        # while there is none, and not by DistributedDataParallel later on.
        from torch.distributed.nn import functional  # noqa: F401

        patience = timedelta(hours=6)  # the others wait while one decodes a whole data set, or draws the only batch
        kind, gpu = ("nccl", device) if device.type == "cuda" else ("gloo", None)
        try:
            dist.init_process_group(kind, timeout=patience, device_id=gpu)
        except ValueError as error:  # a variable that some other launcher left
            raise UserError(f"{world} processes cannot find each other ({error}): {alone}") from None
    return Processes(int(os.environ.get("RANK", 0)) if world > 1 else 0, world, device)


@contextmanager
def joined(device="auto"):
    """`with joined(device) as group:` the Processes of `start`, left in an orderly way, unless an error ends the work.

    After an error NCCL would wait here for the others, who wait for us; once we are gone, torchrun ends them.
    """
    group = start(device)
    yield group
    if dist.is_available() and dist.is_initialized():
        # A DistributedDataParallel is full of cycles: until it is collected it keeps the group and its threads, and a
        # thread that outlives Python can abort the process at its very end.
        gc.collect()
        dist.destroy_process_group()
