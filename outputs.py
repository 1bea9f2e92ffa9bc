"""How is a folder of results replaced whole, without ever destroying what is not ours?

Beside its results a program leaves settings.json, and by these settings the next call knows which files an earlier one
may have written: only they are replaced or removed.  Each program has a function names(settings) -> set for that, which
is empty if the settings are of another program.  Where programs share a folder, as those that make figures do, single
files are `claimed` instead.
"""

import json
import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path

from config import UserError
from files import abandoned, put, replacing

CLAIMS = ".written"  # names of the files in this folder that measures and lessons may replace
MOST = 100_000  # pictures: their names have five digits


def numbered(n):
    """The names of n pictures."""
    return {f"{i:05d}.png" for i in range(min(n, MOST))}


def made(out, names):
    """Names of what an earlier call may have written in this folder, by the settings that it holds."""
    try:
        return names(json.loads((out / "settings.json").read_text()))
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def prepare(out, settings, names):
    """Create the folder, and see that it can be written to, before any work is done.

    Raises UserError if nothing can be written there, or if what would be replaced is not of an earlier call.
    """
    _refuse(out, (opened(out) & names(settings)) - made(out, names))


@contextmanager
def claimed(out, names):
    """`with claimed(out, names):` write the files of these names into `out`, a folder that programs may share.

    Refuses as `prepare` does.  What was written is noted in CLAIMS: that much the next call may replace.
    """
    there, note = opened(out), out / CLAIMS
    ours = set(note.read_text(errors="replace").splitlines()) if note.is_file() else set()
    _refuse(out, (there & names) - ours)
    try:
        yield
    finally:
        written = {name for name in names if (out / name).exists()}
        if written - ours:
            put(note, Path.write_text, "".join(f"{name}\n" for name in sorted(ours | written)))


def opened(out):
    """The names of what lies in the folder `out`, which is created if need be.  UserError: nobody can write there."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with replacing(out / ".writable"):
            pass
        (out / ".writable").unlink()
        return {p.name for p in out.iterdir()}
    except (OSError, UserError) as error:
        reason = (error if isinstance(error, OSError) else error.__cause__).strerror
        raise UserError(f"cannot write in {out}: {reason}; choose another folder with --out DIR") from None


def _refuse(out, foreign):
    if foreign:
        raise UserError(
            f"{out / min(foreign)} was not written by an earlier call like this one, and would be replaced; "
            "choose another folder with --out DIR"
        )


@contextmanager
def replaced(out, settings, names):
    """`with replaced(out, ...) as new:` write the results into the folder `new`; then they lie in `out`, in place of
    what an earlier call wrote, and of nothing else.  If writing fails, on a full disk say, `out` stays as it was.

    At every moment the settings cover what lies in `out`: should this be killed, the next call knows what to clear.
    """
    found = made(out, names)
    for left in filter(abandoned, out.glob(".results.*.tmp") if found else ()):  # of one that was killed while writing
        shutil.rmtree(left, ignore_errors=True)
    new = Path(tempfile.mkdtemp(dir=out, prefix=".results.", suffix=f".{os.getpid()}.tmp"))
    try:
        yield new
        put(new / "settings.json", Path.write_text, json.dumps(settings, indent=2) + "\n")
        for name in found - {"settings.json"}:
            (out / name).unlink(missing_ok=True)
        for path in sorted(new.iterdir(), key=lambda path: path.name != "settings.json"):  # these first
            os.replace(path, out / path.name)
    finally:
        shutil.rmtree(new, ignore_errors=True)
