"""docs/presets.md: every number in its table recomputed, every test that it names found."""

import math
import re
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from config import ABOUT, PRESETS
from models.unet import UNet
from trainer import total_steps

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "docs/presets.md").read_text()
ROWS = re.findall(r"^\| `([\w-]+)` \| ([\d,]+) \| [^|]+ \| ([\d.]+) \| ([^|]+) \| ([\d.]+) \|$", TEXT, re.M)


def test_every_preset_is_described():
    assert set(ABOUT) == set(PRESETS)
    assert {row[0] for row in ROWS} == set(PRESETS) - {"textiles", "smoke"}


@pytest.mark.parametrize("row", ROWS, ids=lambda r: r[0])
def test_the_numbers_of_the_table(row):
    name, parameters, gflop, budget, hours = row
    config = PRESETS[name]
    model = UNet(config.model, config.data.channels, config.data.size).eval()
    assert sum(p.numel() for p in model.parameters()) == int(parameters.replace(",", ""))
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model(torch.zeros(1, config.data.channels, *config.data.size), torch.ones(1))
    training = 3 * counter.get_total_flops()
    assert training / 1e9 == pytest.approx(float(gflop), abs=0.06)

    amount, size = (int(n.replace(",", "")) for n in re.findall(r"[\d,]+", budget))
    t = config.train
    if "epochs" in budget:
        assert amount == t.epochs
        if name == "stanford-cars":
            assert size == 16_185 - round(config.data.val_fraction * 16_185)
        images = amount * size
        assert total_steps(t, size) == math.ceil(images / (t.batch_size * t.accumulate))
    else:
        assert (amount, size) == (t.steps, t.batch_size * t.accumulate)
        images = amount * size
    assert images * training / 90e12 / 3600 == pytest.approx(float(hours), abs=0.06)


def test_every_test_that_the_documents_name_exists():
    tests = "\n".join(p.read_text() for p in (ROOT / "tests").glob("test_*.py"))
    for document in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for name in re.findall(r"\b(test_\w+)\b(?!\.py)", document.read_text()):
            assert f"def {name}(" in tests or (ROOT / f"tests/{name}.py").exists(), f"{document.name}: {name}"


def test_the_shipped_checkpoint_is_the_one_described():
    import hashlib

    digest = hashlib.sha256((ROOT / "assets/textiles.pth").read_bytes()).hexdigest()
    assert digest in (ROOT / "docs/results.md").read_text()
