"""Every number in the table of docs/presets.md recomputed, every cell of the README's compared with its preset."""

import math
import re
import shlex
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import cli
import generate
import main
from config import ABOUT, PRESETS, Config, Sample, UserError, field_of, override
from models import checkpoint
from models.unet import UNet
from trainer import total_steps

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "docs/presets.md").read_text()
ROWS = re.findall(r"^\| `([\w-]+)` \| ([\d,]+) \| [^|]+ \| ([\d.]+) \| ([^|]+) \| ([\d.]+) \|$", TEXT, re.M)

CELLS = re.findall(
    r"`[^`]+`|–", (ROOT / "README.md").read_text().split("\n| feature | `cifar10-cars`")[1].split("\n\n")[0]
)
PUBLISHED, CELLS = ("cifar10-cars", *(c.strip("`") for c in CELLS[:4])), CELLS[4:]
FEATURES = [list(zip(PUBLISHED, CELLS[i : i + 5])) for i in range(0, len(CELLS), 5)]  # [[(preset, cell), ...], ...]


def test_every_preset_is_described():
    assert set(ABOUT) == set(PRESETS)
    assert {row[0] for row in ROWS} == set(PRESETS) - {"textiles", "smoke"}


def test_what_a_preset_is_and_where_its_data_is_from_is_written_as_it_is_printed():
    assert [row for name, about in ABOUT.items() if (row := f"| `{name}` | {about} |") not in TEXT.splitlines()] == []


def test_the_shipped_checkpoint_is_of_the_default_run():
    config, state = checkpoint.load(cli.SHIPPED)
    assert config == PRESETS[main.DEFAULT] and state["step"] == config.train.steps


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


def test_cifar10_is_the_recipe_of_the_ddpm_paper_and_sampling_is_plain_ddim_unless_a_preset_says_more():
    c = PRESETS["cifar10"]
    m, f, t = c.model, c.diffusion, c.train
    assert (m.channels, m.channel_mults, m.num_res_blocks, m.dropout) == (128, (1, 2, 2, 2), 2, 0.1)
    assert (f.T, f.schedule, f.beta_start, f.beta_end, f.prediction) == (1000, "linear", 1e-4, 0.02, "eps")
    assert (t.lr, t.batch_size, t.ema_decay, t.clip_norm, c.data.flip) == (2e-4, 128, 0.9999, 1.0, True)
    assert Config().train.label_dropout == 0.1  # Ho and Salimans 2022
    assert c.sample == PRESETS["cifar10-cars"].sample == Sample(steps=50, eta=0.0, guidance=1.0)


def test_the_table_of_features_is_whole():
    assert set(PUBLISHED) == set(PRESETS) - {"textiles", "cifar10-cars-small", "smoke"}  # these are ours
    assert len(CELLS) % 5 == 0 and len(FEATURES) > 12


@pytest.mark.parametrize(
    "cells", FEATURES, ids=lambda cells: next(c for _, c in cells if c != "–").split()[0].strip("`")
)
def test_a_cell_of_the_table_of_features_is_what_the_preset_has_already(cells):
    flags = set()
    for name, cell in cells:
        if cell.startswith("`--"):
            args = main.parser().parse_args(["--preset", name, *shlex.split(cell.strip("`"))])
            values = main.chosen(args)
            assert bool(values) != (args.precision != "auto")  # the precision is no field: a run can change it
            if not str(args.data).startswith("hf:"):
                assert override(PRESETS[name], values) == PRESETS[name]
            flags |= set(values)
        elif cell != "–":
            _, program, *argv = shlex.split(cell.strip("`"))
            args = generate.parser().parse_args(argv)
            assert (program, args.preset) == ("generate.py", name)
            assert args.sampler == "ddpm" or (args.sampler, args.steps) == ("ddim", PRESETS[name].sample.steps)
    off = {"train.accumulate", "train.warmup_steps", "train.lr_schedule", "train.ema_warmup"}
    for name in (name for name, cell in cells if cell == "–"):  # what is not recorded is not switched on either
        for field in flags & off:
            assert field_of(PRESETS[name], field) == field_of(Config(), field)


def test_every_test_that_the_documents_name_exists():
    tests = "\n".join(p.read_text() for p in (ROOT / "tests").glob("test_*.py"))
    for document in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for name in re.findall(r"\b(test_\w+)\b(?!\.py)", document.read_text()):
            assert f"def {name}(" in tests or (ROOT / f"tests/{name}.py").exists(), f"{document.name}: {name}"


def test_the_shipped_checkpoint_is_the_one_described():
    import hashlib

    digest = hashlib.sha256((ROOT / "assets/textiles.pth").read_bytes()).hexdigest()
    assert digest in (ROOT / "docs/results.md").read_text()


def test_betas_are_refused_where_the_schedule_has_none():
    """The default's schedule is the cosine one; a beta_end that did nothing would look like a result."""
    for name in ("diffusion.beta_start", "diffusion.beta_end"):
        with pytest.raises(UserError, match=f"--{name}: the cosine schedule has none"):
            override(PRESETS["textiles"], {name: 1e-3})
        linear = override(PRESETS["textiles"], {name: 1e-3, "diffusion.schedule": "linear"})
        assert field_of(linear, name) == 1e-3
        override(PRESETS["cifar10"], {name: 1e-3})
