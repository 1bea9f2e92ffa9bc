"""What is it computed on?  The device, the precision that suits it, and its memory.  Read next: processes.py."""

import ctypes
import sys

import torch

from config import UserError

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(name, local=0):
    """torch.device for auto | cpu | cuda | cuda:1; "auto" takes cuda if it is there, or else cpu.

    local: number of the GPU where `name` does not say.  Raises UserError if there is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device {name}: expected auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda":
        if not torch.cuda.is_available():
            lacks = "no CUDA device or driver here" if torch.version.cuda else "this PyTorch was built without CUDA"
            raise UserError(f"--device {name}: {lacks}; use --device cpu")
        device = torch.device("cuda", local if device.index is None else device.index)
        if device.index >= torch.cuda.device_count():
            raise UserError(f"--device {name}: there are {torch.cuda.device_count()} CUDA devices, numbered from 0")
    elif device.type == "mps":
        raise UserError("--device mps: it has no float64, which the tables need; use --device cpu")
    elif device.type != "cpu":
        raise UserError(f"--device {name}: expected auto, cpu, cuda or cuda:N")
    return device


def use_device(name, local=0):
    """`choose_device`, and a GPU is from here on the current one of this process."""
    device = choose_device(name, local)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.backends.cudnn.benchmark = True  # batches have one size: cuDNN tries its kernels once
    return device


def usual_precision(device):
    """bf16 on a GPU that computes in it, from compute capability 8.0 (Ampere); elsewhere fp32."""
    native = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    return "bf16" if native else "fp32"


def autocast(device, precision):
    """`with autocast(...):` matrix products and convolutions at this precision, a key of PRECISIONS."""
    return torch.autocast(device.type, dtype=PRECISIONS[precision], enabled=precision != "fp32")


def peak_memory(device):
    """Largest memory so far in GiB: of the tensors on a GPU, of the whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    import resource  # here, as Windows, which may still draw, has none

    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest / (2**30 if sys.platform == "darwin" else 2**20)  # bytes there, KiB elsewhere


def keep_memory():
    """Let the C library keep freed memory for the next tensor, instead of giving it back to the system each time.

    Otherwise every step of a network on a CPU touches gigabytes of fresh pages, each of which the system first fills
    with zeros; docs/choices.md says what that costs.  Only glibc has the setting; elsewhere this does nothing.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: how much may lie free at the end of the heap
    mallopt(-3, 2**25)  # M_MMAP_THRESHOLD, at the largest that glibc takes: only larger blocks are given back at once
