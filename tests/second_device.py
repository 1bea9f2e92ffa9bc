"""A second device that every machine has, to run the programs on:  python second_device.py "generate ddim -n 4" ...

Its tensors are computed by the CPU, so that the results must be the CPU's.  But they are apart, as on a GPU: an
operation that mixes them with the CPU's tensors is refused, and every copy from one side to the other is noted.
"""

import importlib
import shlex
import sys
from pathlib import Path

import torch
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

copies = []  # "to device", "to device, pinned" and "to host", in the order in which they happened


class Backend(_DummyBackendModule):
    """What torch.elsewhere answers."""

    def get_amp_supported_dtype(self):
        return [torch.bfloat16, torch.float16]

    def mem_get_info(self, _device):
        return 2**33, 2**33


class There(torch.Tensor):
    """A tensor on the second device; `inner`, on the CPU, holds its numbers."""

    @staticmethod
    def __new__(cls, inner):
        new = torch.Tensor._make_wrapper_subclass(
            cls, inner.size(), strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            device=DEVICE,
        )  # fmt: skip
        new.inner = inner
        return new

    def __reduce_ex__(self, protocol):  # in a checkpoint
        return self.inner.__reduce_ex__(protocol)

    def tolist(self):
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        return compute(operation, args, kwargs or {})


def compute(operation, args, kwargs):
    """The operation by the CPU, if all its tensors are on one side; its result is on that side, or where it is told."""
    name = operation.overloadpacket.__name__
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    there = [x for x in tensors if isinstance(x, There)]
    here = [x for x in tensors if not isinstance(x, There)]
    written = [x for argument, x in zip(operation._schema.arguments, args) if argument.is_write]
    if there and name != "copy_" and any(x.dim() or any(x is y for y in written) for x in here):
        raise RuntimeError(f"{name}: expected all tensors on one device, found {DEVICE} and {CPU}")
    if any(isinstance(x, torch.Generator) for x in tree_leaves((args, kwargs))):
        raise RuntimeError(f"{name}: expected a generator of {DEVICE}, found the CPU's")
    known = {id(x.inner): x for x in there}

    def lower(x):
        return x.inner if isinstance(x, There) else CPU if isinstance(x, torch.device) else x

    def lift(x):
        if not isinstance(x, torch.Tensor):
            return x
        return known[id(x)] if id(x) in known else There(x)

    target = kwargs.get("device") or (DEVICE if there else CPU)
    moved = name == "_to_copy" and bool(there) != (target.type == DEVICE.type)
    if moved or (name == "copy_" and here):
        pinned = ", pinned" if any(hasattr(x, "pinned") for x in here) else ""
        to_host = there if moved else not isinstance(args[0], There)
        copies.append("to host" if to_host else f"to device{pinned}")
    if name in ("_local_scalar_dense", "equal", "is_nonzero", "nonzero", "masked_select", "_unique2", "unique_dim"):
        copies.append("to host")  # a number, or how many there will be
    result = operation(*tree_map(lower, args), **tree_map(lower, kwargs))
    if name == "copy_":
        return args[0]
    return tree_map(lift, result) if target.type == DEVICE.type else result


def pin(tensor):
    """Stands for Tensor.pin_memory, which asks for a GPU."""
    tensor = tensor.clone()
    tensor.pinned = True
    return tensor


_setup_privateuseone_for_python_backend("elsewhere", Backend())
CPU, DEVICE = torch.device("cpu"), torch.device("elsewhere", 0)
library, fallback = torch.library.Library("aten", "IMPL"), torch.library.Library("_", "IMPL")
fallback.fallback(lambda operation, *args, **kwargs: compute(operation, args, kwargs), "PrivateUse1")
library.impl("copy_", lambda *args: compute(torch.ops.aten.copy_.default, args, {}), "PrivateUse1")
torch.__future__.set_overwrite_module_params_on_conversion(True)  # parameter.data = x would not reach `inner`
torch.Tensor.pin_memory = pin
torch.set_num_threads(1)


def main(commands):
    """Run commands such as "main --preset smoke" one after the other; the exit code of the first that fails."""
    import cli
    import machine

    machine.choose_device = lambda *_: DEVICE
    codes = (cli.run(importlib.import_module(c.split()[0]).main, shlex.split(c)[1:]) for c in commands)
    return next((code for code in codes if code), 0)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    sys.modules["second_device"] = sys.modules["__main__"]
    sys.exit(main(sys.argv[1:]))
