"""The moving average of the weights."""

import pytest
import torch
from torch import nn

from models.ema import EMA


def line(value):
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, value)
    return model


def test_the_shadow_follows_the_formula_with_ratio_warmup():
    model = line(1.0)
    ema, expected = EMA(model, decay=0.5), 1.0
    for n in range(20):
        nn.init.constant_(model.weight, float(n))
        ema.update(model)
        decay = min(0.5, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * n
        assert ema.model.weight.item() == pytest.approx(expected, rel=1e-5)


def test_the_first_update_is_mostly_the_model_and_late_ones_mostly_the_shadow():
    model = line(0.0)
    ema = EMA(model)
    nn.init.constant_(model.weight, 1.0)
    ema.update(model)
    assert ema.model.weight.item() == pytest.approx(0.9)
    ema.updates = 10**9
    assert ema.decay() == 0.9999


@pytest.mark.parametrize(
    ("warmup", "n", "decay"),
    [
        ("ratio", 0, 0.1),
        ("ratio", 90, 0.91),
        ("power", 0, 0.0),
        ("power", 15, 0.875),
        ("none", 0, 0.99),
        ("ratio", 10**6, 0.99),
    ],
)
def test_warmups(warmup, n, decay):
    ema = EMA(line(0.0), 0.99, warmup)
    ema.updates = n
    assert ema.decay() == pytest.approx(decay)


@pytest.mark.parametrize(("warmup", "age"), [("ratio", lambda n: n / 10), ("power", lambda n: n**0.75)])
@pytest.mark.parametrize("n", [1000, 4000])
def test_how_old_the_averaged_weights_are(warmup, age, n):
    """If the model is the number of the update, the shadow is the mean of the updates that it remembers."""
    model = line(0.0).double()
    ema = EMA(model, 0.99999, warmup)
    for k in range(n):
        nn.init.constant_(model.weight, float(k))
        ema.update(model)
    assert n - ema.model.weight.item() == pytest.approx(age(n), rel=0.15)


def test_decay_zero_is_the_model():
    model = line(3.0)
    ema = EMA(model, decay=0.0)
    nn.init.constant_(model.weight, 7.0)
    ema.update(model)
    assert ema.model.weight.item() == 7.0


def test_a_skipped_update_leaves_the_shadow_bit_for_bit():
    model = line(3.0)
    ema = EMA(model, decay=0.5)
    nn.init.constant_(model.weight, float("nan"))
    before = ema.model.weight.clone()
    ema.update(line(8.0), skip=torch.tensor(True))
    assert torch.equal(ema.model.weight, before)
    ema.update(line(8.0), skip=torch.tensor(False))
    assert not torch.equal(ema.model.weight, before)
    assert ema.updates == 2  # the warm-up goes by steps, skipped ones too


def test_the_shadow_has_no_gradient_and_is_in_eval_mode():
    ema = EMA(nn.Sequential(nn.Linear(1, 1), nn.Dropout()))
    ema.update(nn.Sequential(nn.Linear(1, 1), nn.Dropout()))
    assert not ema.model.training and not any(p.requires_grad for p in ema.model.parameters())


def test_buffers_are_copied():
    model = nn.BatchNorm1d(2)
    ema = EMA(model)
    model.running_mean.fill_(5.0)
    ema.update(model)
    assert torch.equal(ema.model.running_mean, model.running_mean)
