"""How does a folder, or a zip, of arbitrary image files become one uint8 array?

list the image files -> look in the cache -> decode what is new, in order, on all cores -> cache it.
One bad file never stops a run: it is skipped, with its reason.  Nothing is ever written beside the
user's images.  Read first: sources.py, which chooses between this and the other sources.
"""

import hashlib
import io
import json
import os
import stat
import sys
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm import tqdm

from config import UserError
from files import abandoned

EXTENSIONS = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif")
UNREAD = (".tif", ".tiff", ".heic", ".heif", ".avif", ".jxl", ".jp2")  # pictures too: they are listed as skipped
ACCEPTED = "a folder or .zip of " + ", ".join(e[1:] for e in EXTENSIONS) + " images"
# Only these decoders are ever tried, whatever a file is called: some of Pillow's others start programs.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
MAX_BYTES = 2**30  # per file; a zip can promise any size
VERSION = 2  # raise it when the same files would decode to other pixels: it retires every cache


class File(NamedTuple):
    name: str  # POSIX path below the root
    size: int  # bytes
    stamp: tuple[int, ...]  # changes when the file does.  ctime too: a chmod may make it readable
    handle: object  # what opens it: a path, or a ZipInfo (names in a zip need not be unique)
    problem: str = ""  # why there is no point in opening it


Decoded = tuple[np.ndarray, np.ndarray | None, tuple[str, ...], tuple[str, ...]]


def read(path: Path, *, size: tuple[int, int], channels: int, cache: Path | None = None) -> Decoded:
    """Decode every image below a folder or in a zip, or take the result from the cache.

    size is (height, width) in pixels, channels 1 (grey), 3 (RGB) or 4 (RGB and alpha); cache is the
    cache folder, by default $XDG_CACHE_HOME/diffusion or ~/.cache/diffusion.

    Returns (pixels, labels, classes, skipped).  pixels: uint8 (N, C, H, W), sorted by path, usually a
    read-only np.memmap.  labels: int64 (N,) indices into classes if every image lies in a subfolder
    (the first one names its class), else None.  A zip's only top folder is the zip's root.
    skipped: "relative/path: reason".  Raises UserError when there is nothing to read.
    """
    path = Path(os.path.abspath(path))
    if path.is_dir():
        return read_listed(
            path, *_list_folder(path), lambda file: Path(file.handle).read_bytes(), size, channels, cache
        )
    if not path.is_file():
        raise UserError(f"{path}: no such folder or file; accepted: {ACCEPTED}")
    try:
        archive = zipfile.ZipFile(path)
    except Exception as error:  # a damaged directory fails in many ways besides BadZipFile
        raise UserError(f"{path}: not a folder, nor a readable zip ({error}); accepted: {ACCEPTED}") from error
    with archive:
        files, seen = _list_zip(archive, path)
        return read_listed(path, files, seen, lambda file: archive.read(file.handle), size, channels, cache)


def fit(image: Image.Image, size: tuple[int, int], channels: int) -> np.ndarray:
    """Any Pillow image -> uint8 (channels, H, W): resized to cover size = (H, W), then cropped centrally."""
    if image.mode.startswith("I"):  # 16 bits in grey; Pillow's own conversion clips at 255
        wide = np.asarray(image).astype(np.float64)
        image = Image.fromarray(np.clip(np.rint(wide / 257), 0, 255).astype(np.uint8))
    transparent = image.mode.upper().endswith("A") or "transparency" in image.info
    image = image.convert("RGBA" if transparent else "RGB")
    # fit() resamples the crop alone, so 20,000 x 1 pixels never become 640,000 x 32 on the way.
    image = ImageOps.fit(image, size[::-1], Image.Resampling.LANCZOS)
    if image.mode == "RGBA" and channels != 4:  # a dropped alpha would uncover the colours hidden below it
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert({1: "L", 3: "RGB", 4: "RGBA"}[channels])
    return np.asarray(image).reshape(*size, channels).transpose(2, 0, 1)


def listed(skipped: tuple[str, ...]) -> str:
    """("a.png: truncated", ...) -> "a.png (truncated), ...", and after five of them "and 12 more"."""
    shown = ["{0} ({2})".format(*entry.rpartition(": ")) for entry in skipped[:5]]
    more = [f"and {len(skipped) - 5:,} more"] if len(skipped) > 5 else []
    return ", ".join(shown + more)


# --- listing ---


def _list_folder(root: Path) -> tuple[list[File], Counter]:
    files, seen, visited = [], Counter(), set()

    def unreadable(error: OSError) -> None:
        files.append(File(Path(error.filename).relative_to(root).as_posix() + "/", 0, (), None, _reason(error)))

    for folder, subfolders, names in os.walk(root, followlinks=True, onerror=unreadable):
        real = os.path.realpath(folder)
        if real in visited:  # each folder is read once, so a link to a parent cannot turn the walk into a loop
            subfolders.clear()
            continue
        visited.add(real)
        subfolders[:] = sorted(filter(_visible, subfolders))
        for path in (Path(folder, name) for name in names if _wanted([name], seen)):
            size, stamp = 0, ()
            try:
                s = path.stat()
                size, stamp = s.st_size, (s.st_mtime_ns, s.st_ctime_ns)
                problem = "" if stat.S_ISREG(s.st_mode) else "not a regular file"  # a pipe would wait for ever
            except OSError as error:
                problem = _reason(error)
            files.append(File(path.relative_to(root).as_posix(), size, stamp, path, problem))
    return files, seen


def _list_zip(archive: zipfile.ZipFile, path: Path) -> tuple[list[File], Counter]:
    files, seen, s = [], Counter(), path.stat()
    for info in archive.infolist():
        # Names only ever become labels and messages, never paths; "../" means nothing in either.
        parts = [p for p in info.filename.replace("\\", "/").split("/") if p not in ("", ".", "..")]
        if not info.is_dir() and _wanted(parts, seen):
            problem = "encrypted" if info.flag_bits & 1 else ""
            stamp = (info.CRC, s.st_size, s.st_mtime_ns, s.st_ctime_ns)
            files.append(File("/".join(parts), info.file_size, stamp, info, problem))
    return files, seen


def _visible(part: str) -> bool:
    return not part.startswith(".") and part != "__MACOSX"


def _wanted(parts: list[str], seen: Counter) -> bool:
    """Is this the path of an image?  Counts the extensions of all that is not hidden, for the message if none is."""
    if not parts or not all(map(_visible, parts)):
        return False
    extension = os.path.splitext(parts[-1])[1].lower()
    seen[extension] += 1
    return extension in EXTENSIONS + UNREAD


def _labels(names: list[str], in_zip: bool) -> tuple[np.ndarray | None, tuple[str, ...]]:
    parts = [name.split("/") for name in names]
    if in_zip and all(len(p) > 1 and p[0] == parts[0][0] for p in parts):
        parts = [p[1:] for p in parts]  # zipping the folder `pets` puts `pets/` before everything
    if any(len(p) == 1 for p in parts):
        return None, ()
    tops = {top: i for i, top in enumerate(sorted({p[0] for p in parts}))}
    return np.array([tops[p[0]] for p in parts], dtype=np.int64), tuple(map(_printable, tops))


def _printable(name: str) -> str:
    """File names may hold line ends, terminal codes and bytes that are no UTF-8; messages may not."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


# --- decoding ---


def _decode(file: File, open_file: Callable, size: tuple[int, int], channels: int) -> np.ndarray | str:
    """One file -> uint8 (C, H, W), or the reason why not."""
    if file.problem or file.size > MAX_BYTES:
        return file.problem or f"larger than {MAX_BYTES:,} bytes"
    if (ending := os.path.splitext(file.name)[1].lower()) in UNREAD:
        return f"{ending} is not read; convert it to .png"
    try:
        data = open_file(file)
        if not data:
            return "empty file"
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:  # refuses too many pixels unread
            image.draft(None, (4 * max(size), 4 * max(size)))  # large JPEGs decode at 1/2, 1/4, 1/8: far sooner
            ImageOps.exif_transpose(image, in_place=True)
            return fit(image, size, channels)
    except Exception as error:  # broken files raise nearly anything; each one is only itself lost
        return _reason(error)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:  # the system's, in contrast to Pillow's own OSErrors
        return error.strerror.lower()
    table = {
        UnidentifiedImageError: "not an image",
        Image.DecompressionBombError: "too many pixels",
        zipfile.BadZipFile: "damaged in the zip",
        NotImplementedError: "unknown compression",
        MemoryError: "too little memory",
    }
    return next((reason for kind, reason in table.items() if isinstance(error, kind)), "truncated or damaged")


def _decode_all(root: Path, files: list[File], seen: Counter, decode: Callable, keep: Callable):
    """Hand each usable image, in order, to keep(); return the names of the usable, and "name: reason" of the others."""
    names, skipped, workers = [], [], min(32, os.cpu_count() or 1)
    Image.init()  # the decoders register themselves: once, here, rather than in every thread at the same time
    with (
        warnings.catch_warnings(),  # a file that decodes is good, one that does not is listed: warnings add noise
        ThreadPoolExecutor(workers) as pool,  # Pillow decodes outside Python's lock
        tqdm(total=len(files), desc=f"reading {root.name}", unit="image", disable=None) as bar,
    ):
        warnings.simplefilter("ignore")
        for start in range(0, len(files), 8 * workers):  # a few at a time: decoded images must not pile up
            batch = files[start : start + 8 * workers]
            for file, result in zip(batch, pool.map(decode, batch)):
                bar.update()
                if isinstance(result, str):
                    skipped.append(f"{_printable(file.name)}: {result}")
                else:
                    keep(result)
                    names.append(file.name)
    if not names:
        kinds = ", ".join(f"{_printable(kind) or '(no extension)'} x{n:,}" for kind, n in seen.most_common(8))
        found = f"{seen.total():,} files" + (f" ({kinds})" if kinds else "")
        why = f"; skipped: {listed(tuple(skipped))}" if skipped else ""
        raise UserError(f"{root}: no usable image among {found}{why}; accepted: {ACCEPTED}")
    return names, tuple(skipped)


# --- caching ---


def cache_folder() -> Path:
    """Where everything is kept that can be computed again: nothing is lost if it is deleted."""
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "diffusion"


def read_listed(root, files, seen, open_file, size, channels, cache) -> Decoded:
    """The listed files, decoded.  Two files in cache hold the answer: pixels as .npy, the rest as .json."""
    cache = cache or cache_folder()
    files.sort(key=lambda file: file.name)
    decode = partial(_decode, open_file=open_file, size=size, channels=channels)
    family = _digest(str(root), size, channels)  # one data set at one size ...
    stem = f"{family}-{_digest(VERSION, [(f.name, f.size, f.stamp, f.problem) for f in files])}"  # ... in one state
    pixels_path, facts_path = cache / f"{stem}.npy", cache / f"{stem}.json"
    if (hit := _load(pixels_path, facts_path, size, channels)) is not None:
        return hit
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with _atomic(pixels_path) as out:
            # Written like a log, not through a memmap: a full disk is then an error, not a crash (SIGBUS).
            _write_header(out, (len(files), channels, *size))
            names, skipped = _decode_all(root, files, seen, decode, lambda pixels: out.write(pixels.tobytes()))
            out.seek(0)
            _write_header(out, (len(names), channels, *size))
        labels, classes = _labels(names, in_zip=root.is_file())
        numbers = None if labels is None else labels.tolist()
        facts = {"count": len(names), "labels": numbers, "classes": classes, "skipped": skipped}
        with _atomic(facts_path) as out:
            out.write(json.dumps(facts).encode())
        for old in cache.glob(f"{family}-*"):
            if not old.name.startswith(stem) or abandoned(old):
                with suppress(OSError):  # another run may have it open, or be removing it too
                    old.unlink()
        return np.load(pixels_path, mmap_mode="r"), labels, classes, skipped
    except OSError as error:
        print(f"warning: cannot cache in {cache} ({_reason(error)}); decoding into memory", file=sys.stderr)
    room = np.empty((len(files), channels, *size), np.uint8)
    rows = iter(room)
    names, skipped = _decode_all(root, files, seen, decode, lambda pixels: np.copyto(next(rows), pixels))
    return room[: len(names)], *_labels(names, in_zip=root.is_file()), skipped


def _load(pixels_path: Path, facts_path: Path, size: tuple[int, int], channels: int) -> Decoded | None:
    """What the cache holds, or None when that is nothing, or damaged in whatever way."""
    try:
        pixels, facts = np.load(pixels_path, mmap_mode="r"), json.loads(facts_path.read_bytes())
        labels = None if facts["labels"] is None else np.array(facts["labels"], dtype=np.int64)
        whole = pixels.dtype == np.uint8 and pixels.shape == (facts["count"], channels, *size)
        whole = whole and (labels is None or len(labels) == len(pixels))
        return (pixels, labels, tuple(facts["classes"]), tuple(facts["skipped"])) if whole else None
    except Exception:
        return None


@contextmanager
def _atomic(path: Path) -> Iterator[BinaryIO]:
    """A file that appears under its name complete, or not at all."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _write_header(file: BinaryIO, shape: tuple[int, ...]) -> None:
    """NumPy pads the header so that the first dimension can be corrected in place once it is known."""
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})


def _digest(*facts: object) -> str:
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:32]
