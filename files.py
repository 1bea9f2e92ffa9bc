"""How does a file get its new content whole, or not at all?

It is written beside its final place, flushed to the disk (unless it is easily made again) and then renamed, so at every
moment the old file or the new one is there.  And how does a run keep its folder to itself?
"""

import os
import tempfile
from contextlib import contextmanager
from pathlib import Path

from config import UserError


@contextmanager
def replacing(path, flush=True):
    """`with replacing(path) as temp:` write to temp; it becomes `path` at the end, or vanishes if anything fails.

    flush: wait for the disk, so that a power cut cannot take it: milliseconds, which add up over 50,000 pictures.
    Raises UserError, naming the path, if it cannot be written.
    """
    path = Path(path)
    try:
        handle, temp = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        os.close(handle)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    try:
        yield Path(temp)
        if flush:
            with open(temp, "rb+") as file:
                os.fsync(file.fileno())  # a rename may reach the disk before the bytes do
        mask = os.umask(0)  # there is no other way to ask for it
        os.umask(mask)
        os.chmod(temp, 0o666 & ~mask)  # a temporary file is its owner's alone; this one is to be as any other
        os.replace(temp, path)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        if "CUDA" in str(error):  # of the device that the content was to come from
            raise
        raise UserError(f"cannot write {path}: {_reason(error)}; what was there before is untouched") from error
    finally:
        Path(temp).unlink(missing_ok=True)


def abandoned(path):
    """Is this the temporary thing, called *.PID.tmp, of a process that is no more?"""
    if path.suffix != ".tmp" or os.name == "nt":  # Windows has another meaning for signal 0
        return False
    try:
        os.kill(int(path.name.split(".")[-2]), 0)  # signal 0 does nothing but ask whether the process is there
    except ProcessLookupError:
        return True
    except (OSError, ValueError, OverflowError):  # another user's process, or not a name of ours
        pass
    return False


def _reason(error):
    """In the system's words, if it was the system; torch hides them behind an error of its own."""
    cause = error
    while cause is not None:
        if getattr(cause, "strerror", None):
            return cause.strerror
        cause = cause.__context__
    return str(error).splitlines()[0]


def put(path, save, content, flush=True):
    """save(temp, content), and then `path` is that file: `replacing` in one line."""
    with replacing(path, flush) as temp:
        save(temp, content)


LOCK = ".lock"


def is_ours(folder):
    """Whether `locked` has ever held this folder: what lies in it is then a run's."""
    return (Path(folder) / LOCK).exists()


@contextmanager
def locked(folder):
    """Hold `folder` for this process.  The lock is the operating system's, so a crash does not leave it behind.

    Raises UserError if another process holds it, or if it cannot be locked.
    """
    try:
        import fcntl  # here, as Windows has none
    except ImportError:
        raise UserError("training needs Linux or macOS; on Windows use WSL (drawing may work without)") from None
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise UserError(f"cannot write in {folder}: {error.strerror}") from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise UserError(f"{folder}: another process is training here; wait for it, or use --out DIR") from None
    except OSError as error:  # some network file systems have no locks
        os.close(handle)
        raise UserError(
            f"{folder} cannot be locked: {error.strerror}; choose a folder on a local disk with --out DIR"
        ) from None
    try:
        yield
    finally:
        os.close(handle)
