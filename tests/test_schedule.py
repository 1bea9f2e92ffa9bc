"""Schedules against the papers' formulas, recomputed here the slow way."""

import math

import pytest
import torch

from config import Diffusion
from diffusion.schedule import SCHEDULES, cosine, linear, zero_terminal
from diffusion.variants import from_config


@pytest.mark.parametrize("s", [linear(100, 1e-4, 0.2), cosine(100)], ids=["linear", "cosine"])
def test_tables_have_T_plus_one_float64_entries_and_start_at_the_data(s):
    assert s.T == 100 and s.betas.shape == s.alpha_bar.shape == (101,)
    assert s.betas.dtype == s.alpha_bar.dtype == torch.float64
    assert s.betas[0] == 0 and s.alpha_bar[0] == 1
    assert (s.alpha_bar.diff() < 0).all() and (s.alpha_bar > 0).all()


def test_linear_reaches_both_ends_and_alpha_bar_is_the_product():
    s = linear()
    assert s.betas[1].item() == pytest.approx(1e-4, abs=0) and s.betas[1000].item() == pytest.approx(0.02, abs=0)
    product = 1.0
    for t in range(1, 1001):
        product *= 1 - (1e-4 + (0.02 - 1e-4) * (t - 1) / 999)
        if t in (1, 2, 500, 1000):
            assert s.alpha_bar[t].item() == pytest.approx(product, rel=1e-12)
    assert s.alpha_bar[1000].item() == pytest.approx(4.0358e-5, rel=1e-4)  # what the paper's settings come to


def test_cosine_is_the_formula_until_beta_is_capped():
    s = cosine(1000)
    f = [math.cos((t / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 for t in range(1001)]
    for t in (1, 10, 500, 990):
        assert s.alpha_bar[t].item() == pytest.approx(f[t] / f[0], rel=1e-9)
    assert s.betas.max().item() == 0.999
    assert s.betas[1000].item() == 0.999 and s.betas[999].item() < 0.999


def test_alpha_bar_is_rebuilt_from_the_capped_betas():
    with pytest.warns(UserWarning, match="keeps"):  # so low a cap leaves some signal
        s = cosine(40, max_beta=0.3)
    torch.testing.assert_close(s.alpha_bar, torch.cumprod(1 - s.betas, 0), rtol=0, atol=0)
    assert s.betas.max().item() == 0.3


def test_snr_is_signal_over_noise_variance():
    s = linear()
    assert s.snr[0] == math.inf
    torch.testing.assert_close(s.snr[1:], s.alpha_bar[1:] / (1 - s.alpha_bar[1:]))
    assert s.snr[500] == s.alpha_bar[500] / (1 - s.alpha_bar[500])


def test_a_schedule_that_keeps_too_much_signal_warns():
    with pytest.warns(UserWarning, match="keeps 7.5% of the signal at t = T = 512"):
        linear(512)
    with pytest.warns(UserWarning, match="keeps 5.1% of the signal"):
        linear(590)


@pytest.mark.parametrize("make", [lambda: linear(50), lambda: cosine(40, max_beta=0.3)])
def test_the_warning_names_the_line_that_asked_for_the_schedule(make):
    with pytest.warns(UserWarning) as told:
        make()
    assert told[0].filename == __file__ and told[0].lineno == make.__code__.co_firstlineno


@pytest.mark.parametrize("make", [linear, cosine, lambda: linear(50, 1e-4, 0.3), lambda: linear(595)])  # 4.9 %
def test_a_schedule_that_ends_in_noise_does_not_warn(make, recwarn):
    make()
    assert not recwarn.list


def test_a_config_whose_schedule_keeps_too_much_signal_warns():
    with pytest.warns(UserWarning, match="keeps 7.5% of the signal"):
        from_config(Diffusion(T=512))


def test_signal_that_zero_terminal_snr_takes_away_is_no_reason_to_warn(recwarn):
    from_config(Diffusion(T=100, prediction="v", zero_terminal_snr=True))
    assert not recwarn.list


def test_schedules_have_their_names():
    assert SCHEDULES["linear"] is linear and SCHEDULES["cosine"] is cosine and len(SCHEDULES) == 2


@pytest.mark.parametrize("T", [1, 2, 3])
def test_very_short_schedules_work(T):
    s = cosine(T)
    assert s.T == T and torch.isfinite(s.alpha_bar).all()


@pytest.mark.parametrize("make", [linear, cosine])
def test_zero_terminal_snr_ends_at_zero_keeps_the_first_level_and_the_order(make):
    before = make()
    after = zero_terminal(before)
    root, old = after.alpha_bar.sqrt(), before.alpha_bar.sqrt()
    assert root[0] == 1 and root[-1] == 0 and after.betas[-1] == 1
    assert root[1].item() == pytest.approx(old[1].item(), rel=1e-12)
    assert (root.diff() < 0).all()
    gaps = root[1:].diff() / old[1:].diff()  # the shape is kept: every gap grows by the same factor
    torch.testing.assert_close(gaps, torch.full_like(gaps, (old[1] / (old[1] - old[-1])).item()), rtol=1e-6, atol=0)


def test_zero_terminal_snr_needs_two_levels():
    with pytest.raises(ValueError, match="one level"):
        zero_terminal(cosine(1))
