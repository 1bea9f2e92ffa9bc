"""How does a data set of the Hugging Face Hub become one uint8 array?  `--data hf:NAME`

The optional package `datasets` downloads it, or opens a folder that its save_to_disk wrote; from there on its images
are treated like files: decoded once, cached, and skipped with a reason when damaged.  Read next: dataset/folder.py.
"""

from collections import Counter
from pathlib import Path

from config import UserError
from dataset import folder


def read(name: str, *, size: tuple[int, int], channels: int, cache: Path | None = None) -> folder.Decoded:
    """The "train" split of `name` (or its first), by its first image column; labels by its first column of classes.

    name: as on the Hub ("user/set"), or the path of a saved data set.  The rest, and the result, as in folder.read.
    """
    try:
        import datasets
    except ImportError:
        raise UserError(f"hf:{name} needs the package datasets: pip install datasets") from None
    try:
        data = datasets.load_from_disk(name) if Path(name).is_dir() else datasets.load_dataset(name)
    except Exception as error:  # no network, no such name, no such format: to the user it is one thing
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(
            f"hf:{name}: cannot be loaded ({reason}); --data PATH takes a folder or zip of images"
        ) from error
    if isinstance(data, dict):
        data = data.get("train") or next(iter(data.values()))
    kinds = data.features
    column = next((c for c, kind in kinds.items() if isinstance(kind, datasets.Image)), None)
    if column is None:
        raise UserError(f"hf:{name}: no image column among {', '.join(kinds) or 'no columns'}")
    label = next((c for c, kind in kinds.items() if isinstance(kind, datasets.ClassLabel)), None)
    data = data.cast_column(column, datasets.Image(decode=False))  # the bytes of the file, decoded by us

    def open_file(file):
        entry = data[file.handle][column]
        return entry["bytes"] or Path(entry["path"]).read_bytes()

    # A class is the first part of a path, as in a folder with one subfolder for each class.
    paths = [f"{i:09d}" for i in range(len(data))]
    if label:
        tops = (kinds[label].int2str(n) if n is not None and n >= 0 else "unlabelled" for n in data[label])
        paths = [f"{top.replace('/', '_')}/{path}" for top, path in zip(tops, paths)]
    stamp = (str(data._fingerprint),)
    files = [folder.File(path, 1, stamp, i) for i, path in enumerate(paths)]
    return folder.read_listed(Path(f"hf:{name}"), files, Counter(), open_file, size, channels, cache)
