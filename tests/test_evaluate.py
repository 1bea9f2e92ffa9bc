"""Distances, the likelihood bound and the nearest neighbour against closed forms; evaluate.py as a user meets it."""

import errno
import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from oracles import gaussian, last, normal, seeded
from PIL import Image
from torch.distributions import Normal, kl_divergence
from torch.testing import assert_close

import evaluate
import sampling
from config import PRESETS, UserError, override
from dataset import pictures, reference, sources, textiles
from dataset.pixels import from_uint8, to_uint8
from diffusion import bound, ode, samplers
from diffusion.process import GaussianDiffusion, q_posterior
from diffusion.schedule import from_betas, linear
from diffusion.steps import image_noise, spaced, spaced_logsnr, spaced_rho
from evaluation import compare, features, kernel
from evaluation.frechet import frechet, moments
from evaluation.kernel import kernel_distance, mmd2
from evaluation.nearest import nearest, verdict
from measures.distance import cached, warn_if_few
from measures.speed import speed
from measures.subject import Subject
from models import checkpoint
from models.unet import UNet
from painter import Painter
from processes import Processes

MU, STD = 0.1, 0.35


# ---------------------------------------------------------------- Frechet distance


def test_frechet_of_isotropic_gaussians_is_the_closed_form():
    """‖μ₁-μ₂‖² + d (σ₁ - σ₂)²."""
    eye = torch.eye(5, dtype=torch.float64)
    a, b = torch.zeros(5, dtype=torch.float64), torch.full((5,), 2.0, dtype=torch.float64)
    assert frechet(a, 9 * eye, b, 4 * eye) == pytest.approx(5 * 4 + 5 * (3 - 2) ** 2, abs=1e-12)


def test_frechet_of_gaussians_that_do_not_commute():
    """In two dimensions tr √(S₁S₂) = √(tr S₁S₂ + 2 √det S₁S₂)."""
    s1 = torch.tensor([[2.0, 0.9], [0.9, 1.0]], dtype=torch.float64)
    s2 = torch.tensor([[1.0, -0.4], [-0.4, 3.0]], dtype=torch.float64)
    zero = torch.zeros(2, dtype=torch.float64)
    root = ((s1 @ s2).trace() + 2 * (s1.det() * s2.det()).sqrt()).sqrt()
    expected = (s1.trace() + s2.trace() - 2 * root).item()
    assert frechet(zero, s1, zero, s2) == pytest.approx(expected, abs=1e-12)
    assert frechet(zero, s2, zero, s1) == pytest.approx(expected, abs=1e-12)


def test_frechet_of_flat_clouds_is_finite_and_of_equal_ones_zero():
    """Fewer images than features: the covariance has no inverse."""
    x = normal(4, 20)
    assert frechet(*moments(x), *moments(x)) == pytest.approx(0, abs=1e-6)
    assert frechet(*moments(x), *moments(x + 1)) == pytest.approx(20, abs=1e-5)


def test_moments_are_unbiased():
    x = torch.tensor([[0.0, 0.0], [2.0, 4.0]])
    mean, covariance = moments(x)
    assert_close(mean, torch.tensor([1.0, 2.0], dtype=torch.float64))
    assert_close(covariance, torch.tensor([[2.0, 4.0], [4.0, 8.0]], dtype=torch.float64))


# ---------------------------------------------------------------- kernel distance


def test_mmd2_of_a_tiny_example_by_hand():
    """d = 1; x = 0, 1 and y = 1, 2: within x 1, within y (2+1)³ = 27, across (1 + 1 + 8 + 27) / 4."""
    x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([[1.0], [2.0]])
    assert mmd2(x, y) == pytest.approx(1 + 27 - 2 * (1 + 1 + 8 + 27) / 4, abs=1e-12)


def test_mmd2_is_zero_on_average_for_equal_distributions_at_any_n():
    values = [mmd2(normal(5, 3, seed=2 * i), normal(7, 3, seed=2 * i + 1)) for i in range(1500)]
    error = np.std(values) / len(values) ** 0.5
    assert abs(np.mean(values)) < 4 * error
    assert min(values) < 0 and error < 0.06


def test_mmd2_of_gaussians_is_the_closed_form():
    """One dimension, N(0,1) and N(m,1): Σ_j C(3,j) (M_j - M'_j)², M_j the moments of order j."""
    m = 0.5
    expected = 3 * m**2 + 3 * (m**2) ** 2 + (m**3 + 3 * m) ** 2
    values = [mmd2(normal(200, 1, seed=2 * i), m + normal(200, 1, seed=2 * i + 1)) for i in range(60)]
    assert abs(np.mean(values) - expected) < 4 * np.std(values) / 60**0.5


def test_kernel_distance_uses_subsets_that_differ():
    x, y = normal(30, 4), normal(50, 4, seed=1)
    mean, std, size = kernel_distance(x, y, subsets=20)
    assert size == 15 and std > 0
    assert kernel_distance(x, y, subsets=20) == (mean, std, size)


@pytest.mark.parametrize(
    ("m", "n", "asked", "size"), [(30, 50, 1000, 15), (50, 31, 1000, 15), (30, 50, 9, 9), (2, 3, 9, 2)]
)
def test_the_subsets_are_as_large_as_asked_for_and_at_most_half_of_the_smaller_set(m, n, asked, size):
    assert kernel_distance(normal(m, 4), normal(n, 4, seed=1), subsets=2, size=asked)[2] == size


def test_kernel_distance_takes_the_subsets_of_the_kid_protocol(monkeypatch):
    """Bińkowski et al. 2018, as the public implementations have it: 100 subsets of 1,000."""
    taken = []
    monkeypatch.setattr(kernel, "mmd2", lambda x, y: taken.append((len(x), len(y))) or 0.0)
    assert kernel_distance(normal(2100, 2), normal(2100, 2))[2] == 1000
    assert taken == [(1000, 1000)] * 100


def test_kernel_distance_and_its_deviation_are_those_of_mmd2_over_subsets_without_repeats():
    """A repeated point would count as a pair at no distance, which raises the mean."""
    x, y, rng = normal(12, 4), normal(14, 4, seed=1) + 0.5, np.random.default_rng(1)
    own = [mmd2(x[rng.permutation(12)[:6]], y[rng.permutation(14)[:6]]) for _ in range(600)]
    mean, std, size = kernel_distance(x, y, subsets=600)
    assert size == 6
    assert abs(mean - mmd2(x, y)) < 4 * std / 600**0.5
    assert std == pytest.approx(np.std(own), rel=0.2)


# ---------------------------------------------------------------- features


@pytest.mark.parametrize("name", ["random", "pixels"])
def test_features_are_the_same_for_any_batch(name):
    see = features.extractor(name)
    some = torch.randint(0, 256, (4, 3, 20, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    whole = see(some)
    assert whole.dtype == torch.float32 and whole.shape[0] == 4
    assert_close(whole, torch.cat([see(some[:1]), see(some[1:])]))
    assert see.digest == features.extractor(name).digest and len(see.digest) == 64


def test_random_features_grow_with_the_contrast_around_mid_grey():
    """No bias, and ReLU: means and deviations of channels are multiplied by what the picture is multiplied by."""
    odd = 2 * torch.randint(-40, 40, (4, 3, 20, 12), generator=torch.Generator().manual_seed(0)) + 1
    faint, strong = (((255 + k * odd) // 2).to(torch.uint8) for k in (1, 3))
    see = features.extractor("random")
    assert see(faint).abs().max() > 0.01
    assert_close(see(strong), 3 * see(faint))


def test_random_features_are_means_and_deviations_of_three_layers_by_hand():
    """3x3 filters of He's deviation √(2 / 9C), ReLU; and halved, edges whole, between the layers."""
    picture = torch.randint(0, 256, (1, 3, 9, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    rng, x, expected, digest = np.random.default_rng(0), picture[0].double().numpy() / 127.5 - 1, [], hashlib.sha256()
    for narrow, wide in ((3, 16), (16, 32), (32, 64)):
        filters = rng.standard_normal((wide, narrow, 3, 3), dtype=np.float32) * np.float32(np.sqrt(2 / (9 * narrow)))
        digest.update(filters.tobytes())
        windows = np.lib.stride_tricks.sliding_window_view(np.pad(x, ((0, 0), (1, 1), (1, 1)), "edge"), (3, 3), (1, 2))
        x = np.einsum("chwij,dcij->dhw", windows, filters).clip(min=0)
        expected += [x.mean((1, 2)), x.std((1, 2), ddof=1)]
        H, W = x.shape[1:]
        x = np.array([[x[:, i : i + 2, j : j + 2].mean((1, 2)) for j in range(0, W, 2)] for i in range(0, H, 2)])
        x = x.transpose(2, 0, 1)
    see = features.extractor("random")
    assert_close(see(picture)[0].double(), torch.from_numpy(np.concatenate(expected)), rtol=1e-4, atol=1e-5)
    assert see.digest == digest.hexdigest()


def test_random_features_refuse_pictures_too_small_for_a_deviation(program):
    extract = features.extractor("random")
    assert torch.isfinite(extract(torch.zeros(2, 3, 5, 4, dtype=torch.uint8))).all()
    with pytest.raises(UserError, match="more than 4 pixels"):
        extract(torch.zeros(2, 3, 4, 4, dtype=torch.uint8))
    flags = ("--preset", "smoke", "--data.size", "4,4", "--train.distance_images", 8)
    code, _, err = program("main", *flags)
    assert code == 2 and err.startswith("error: --train.distance_features") and err.count("\n") == 1, err


def test_pixel_features_are_the_means_of_an_eight_by_eight_thumbnail():
    picture = torch.randint(0, 256, (2, 3, 16, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    blocks = picture.double().view(2, 3, 8, 2, 8, 3).mean((3, 5)) / 255
    assert_close(features.extractor("pixels")(picture).double(), blocks.flatten(1), rtol=1e-5, atol=0)


def test_grey_pictures_are_seen_as_colours_and_transparent_ones_on_white():
    assert pictures.rgb(torch.full((2, 1, 1, 1), 7, dtype=torch.uint8)).tolist() == [[[[7]]] * 3] * 2
    rgba = torch.tensor([200, 100, 0, 102], dtype=torch.uint8).view(1, 4, 1, 1)  # 40 % opaque
    assert pictures.rgb(rgba).flatten().tolist() == [233, 193, 153]
    assert pictures.rgb(torch.tensor([[[3]], [[3]], [[3]], [[77]]], dtype=torch.uint8))[0].item() == 179  # 178.9
    assert torch.equal(pictures.rgb(rgba[:, :3]), rgba[:, :3])


@pytest.mark.parametrize("channels", [1, 4])
def test_whatever_the_channels_are_features_are_of_colours(program, monkeypatch, channels):
    """Drawn pictures and real ones, while training and afterwards."""
    seen = []
    monkeypatch.setattr(features, "_pixels", lambda: features.Extractor("pixels", "0" * 64, spy))

    def spy(pictures):
        seen.append(pictures.shape[1])
        return pictures.float().flatten(1)

    flags = ("--data.channels", channels, "--train.distance_images", 4, "--train.distance_features", "pixels")
    assert program("main", "--preset", "smoke", *flags, "--out", "run")[0] == 0
    trained = len(seen)
    assert program("evaluate", "fid", "--ckpt", "run", "-n", 4, "--features", "pixels", "--steps", 2)[0] == 0
    assert trained and len(seen) >= trained + 2 and set(seen) == {3}


def test_only_inception_is_called_fid():
    assert compare.names("inception") == ("fid", "kid") and compare.titles("inception") == ("FID", "KID")
    for name in ("random", "pixels"):
        assert "fid" not in " ".join(compare.names(name)) and "FID" not in " ".join(compare.titles(name))
        assert [name in title for title in compare.titles(name)] == [True, True]
        assert compare.titles(name)[0].startswith("Frechet") and compare.names(name)[0].startswith("frechet")


def test_compare_takes_uint8_pictures_and_gives_numbers():
    some = torch.randint(0, 256, (12, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    see = features.extractor("random")
    same, other = compare.compare(some, some, see), compare.compare(some, some // 4, see, batch=5)
    assert set(same) == {"frechet_distance_random", "mmd2_random", "mmd2_random_std", "mmd2_random_subset"}
    assert same["frechet_distance_random"] < 1e-3 < other["frechet_distance_random"]


# ---------------------------------------------------------------- the bound


def levels_of_a_gaussian():
    """The probabilities (256,) of N(MU, STD²) rounded to the grey levels k / 127.5 - 1, the ends open."""
    inner = torch.arange(255, dtype=torch.float64) / 127.5 - 1 + 1 / 255
    edges = torch.special.ndtr((inner - MU) / STD)
    return torch.diff(edges, prepend=torch.zeros(1).double(), append=torch.ones(1).double())


def test_kl_is_that_of_two_gaussians():
    a, b, c, d = (torch.tensor(v, dtype=torch.float64) for v in (0.3, 0.5, -0.2, 2.0))
    assert_close(bound.kl(a, b, c, d), kl_divergence(Normal(a, b.sqrt()), Normal(c, d.sqrt())))


def test_prior_term_is_the_kl_to_pure_noise():
    schedule, x_0 = linear(30, 0.01, 0.4), normal(2, 1, 3, 3).clamp(-1, 1)
    ab = schedule.alpha_bar[30]
    expected = kl_divergence(Normal(ab.sqrt() * x_0, (1 - ab).sqrt()), Normal(0.0, 1.0)).flatten(1).sum(1)
    assert_close(bound.prior_term(schedule, x_0), expected)


def test_prior_term_where_much_of_the_picture_is_left():
    schedule, x_0 = from_betas(torch.full((3,), 0.2, dtype=torch.float64)), normal(2, 1, 3, 3).clamp(-1, 1)
    ab = schedule.alpha_bar[3]
    expected = kl_divergence(Normal(ab.sqrt() * x_0, (1 - ab).sqrt()), Normal(0.0, 1.0)).flatten(1).sum(1)
    assert_close(bound.prior_term(schedule, x_0), expected)


@pytest.mark.parametrize("t", [2, 17, 30])
def test_with_the_small_variance_a_step_costs_half_the_snr_it_gains_times_the_error(t):
    """What the comment above L_simple says."""
    schedule, x_0, x_t, guess = (
        linear(30, 0.01, 0.4),
        normal(2, 1, 3, 3),
        normal(2, 1, 3, 3, seed=1),
        normal(2, 1, 3, 3, seed=2),
    )
    snr, square = schedule.snr, (x_0 - guess).square().flatten(1).sum(1)
    found = bound.step_term(schedule, lambda x, t: (guess, None), x_0, x_t, t)
    assert_close(found, 0.5 * (snr[t - 1] - snr[t]) * square)
    eps, eps_hat = (GaussianDiffusion(schedule, "x0").to_x0_eps(x, x_t, t)[1] for x in (x_0, guess))
    assert_close((eps - eps_hat).square().flatten(1).sum(1), snr[t] * square)


@pytest.mark.parametrize("variance", ["small", "large"])
def test_step_term_is_the_kl_of_posterior_and_reverse_step(variance):
    schedule, x_0, x_t, t = linear(30, 0.01, 0.4), normal(2, 1, 3, 3), normal(2, 1, 3, 3, seed=1), 9
    guess = gaussian(schedule, MU, STD)(x_t, t)[0]
    mean, posterior = q_posterior(schedule, x_0, x_t, t, t - 1)
    model, _ = q_posterior(schedule, guess, x_t, t, t - 1)
    wide = posterior if variance == "small" else schedule.betas[t]
    expected = kl_divergence(Normal(mean, posterior.sqrt()), Normal(model, wide.sqrt())).flatten(1).sum(1)
    assert_close(bound.step_term(schedule, gaussian(schedule, MU, STD), x_0, x_t, t, variance), expected)


@pytest.mark.parametrize("variance", ["small", "large"])
def test_a_step_term_for_several_levels_at_once_is_that_of_each(variance):
    """Three images, three channels: a variance for each image must not be taken for one for each column."""
    schedule, x_0, x_t, guess = linear(30, 0.01, 0.4), *(normal(3, 3, 3, 3, seed=i) for i in range(3))
    t = torch.tensor([2, 9, 30])
    found = bound.step_term(schedule, lambda x, t: (guess, None), x_0, x_t, t, variance)
    for i, level in enumerate(t.tolist()):
        one = slice(i, i + 1)
        alone = bound.step_term(schedule, lambda x, t: (guess[one], None), x_0[one], x_t[one], level, variance)  # noqa: B023
        assert_close(found[one], alone)


def test_decoder_is_a_distribution_over_the_256_grey_levels():
    schedule = linear(30, 1e-4, 0.5)
    x_0 = (torch.arange(256, dtype=torch.float64) / 127.5 - 1).view(256, 1, 1, 1)
    for x_1 in (-1.2, -0.995, 0.013, 0.9, 0.995):  # near the outermost levels too, whose bins are open
        nats = bound.decoder_term(schedule, gaussian(schedule, MU, STD), x_0, torch.full_like(x_0, x_1))
        assert torch.isfinite(nats).all()  # far out too, where the probability underflows
        assert torch.exp(-nats).sum().item() == pytest.approx(1, abs=1e-12)


def test_the_bound_approaches_the_entropy_of_quantised_gaussian_data_from_above():
    """With the perfect network, and the variance of broad data, the gap falls with the length of the steps."""
    p = levels_of_a_gaussian()
    entropy = -(p * p.log2()).sum().item()
    generator = torch.Generator().manual_seed(0)
    k = torch.multinomial(p, 40_000, replacement=True, generator=generator).view(4, 1, 100, 100)
    own = -p[k].log2().mean().item()  # what the very best code spends on these pixels
    assert own == pytest.approx(entropy, abs=0.02)
    x_0 = k.double() / 127.5 - 1
    gaps = []
    for T in (25, 100, 400):
        schedule = from_betas(torch.full((T,), 1 - math.exp(-10 / T), dtype=torch.float64))
        terms = bound.bound(gaussian(schedule, MU, STD), schedule, x_0, seeded(), lambda a, b: a, T, "large")
        gaps.append(bound.in_bits(sum(terms), x_0).mean().item() - own)
    assert 0 < gaps[2] < gaps[1] / 2.5 < gaps[0] / 5
    assert gaps[2] < 0.06


@pytest.mark.parametrize(("T", "n"), [(2, 1), (50, 7), (1000, 100), (1000, 999), (10, 500), (1, 5)])
def test_strata_cover_every_level_once(T, n):
    stretches = bound.strata(T, n)
    assert [t for first, last in stretches for t in range(first, last + 1)] == list(range(2, T + 1))
    assert len(stretches) <= n


def test_strata_are_short_where_t_is_small():
    assert bound.strata(1000, 3) == [(2, 112), (113, 445), (446, 1000)]


@pytest.mark.parametrize("levels", [6, 39])
def test_the_bound_is_its_terms_by_hand_each_through_noise_of_its_own(levels):
    """And builds no graph, though the network has weights to learn."""
    schedule, x_0 = linear(40, 1e-3, 0.3), ((normal(2, 1, 4, 4) * STD + MU).clamp(-1, 1) * 127.5).round() / 127.5
    weight, perfect, noise, expected = torch.ones((), requires_grad=True), gaussian(schedule, MU, STD), seeded(), []
    denoise = lambda x, t: tuple(weight * z for z in perfect(x, t))  # noqa: E731
    found = list(bound.bound(denoise, schedule, x_0, seeded(), lambda a, b: (a + b) // 2, levels, "large"))
    for first, last_ in [(1, 1), *bound.strata(40, levels)]:
        t = (first + last_) // 2
        x_t = schedule.alpha_bar[t].sqrt() * x_0 + (1 - schedule.alpha_bar[t]).sqrt() * noise(x_0)
        if t == 1:
            term = bound.decoder_term(schedule, perfect, x_0, x_t, "large")
        else:
            term = (last_ - first + 1) * bound.step_term(schedule, perfect, x_0, x_t, t, "large")
        expected.append(term)
    expected.append(bound.prior_term(schedule, x_0))
    for nats, term in zip(found, expected, strict=True):
        assert not nats.requires_grad
        assert_close(nats, term)


def test_few_levels_give_the_whole_bound_on_average():
    schedule, x_0 = linear(40, 1e-3, 0.3), (normal(300, 1, 4, 4) * STD + MU).clamp(-1, 1)
    rng = np.random.default_rng(0)

    def total(levels):
        draw = lambda a, b: int(rng.integers(a, b + 1))  # noqa: E731
        terms = bound.bound(gaussian(schedule, MU, STD), schedule, x_0, seeded(levels), draw, levels)
        return sum(nats.mean().item() for nats in terms)

    values = [total(6) for _ in range(60)]
    assert abs(np.mean(values) - total(39)) < 4 * np.std(values) / 60**0.5 + 0.05


# ---------------------------------------------------------------- the likelihood


def bits_at_level_1(schedule, x):
    """-log2 of the density of noised Gaussian data at x, with grey levels as the unit of length, for each entry."""
    ab = schedule.alpha_bar[1]
    density = Normal(ab.sqrt() * MU, (ab * STD**2 + 1 - ab).sqrt())
    return -density.log_prob(x) / math.log(2) + math.log2(127.5)


def test_the_likelihood_of_gaussian_data_in_bits_is_its_cross_entropy_at_level_1():
    """Level 1 is far from the data here: asked of the picture as it is, not of one that is scaled or noised to it."""
    schedule = from_betas(torch.full((400,), 0.03, dtype=torch.float64))
    x_0 = ((normal(4, 1, 100, 100) * STD + MU) * 127.5).round() / 127.5  # rounded as grey levels are, without ends
    bits = ode.bits_per_dim(gaussian(schedule, MU, STD), schedule, x_0, seeded(), tol=1e-5)
    noise = seeded()
    x = x_0 + (torch.special.ndtr(noise(x_0)) - 0.5) / 127.5
    assert_close(bits, bits_at_level_1(schedule, x).flatten(1).mean(1), rtol=0, atol=1e-3)
    ab = schedule.alpha_bar[1].item()
    variance, shift = ab * STD**2 + 1 - ab, (1 - ab**0.5) * MU
    nats = 0.5 * math.log(2 * math.pi * variance) + (STD**2 + shift**2) / (2 * variance)
    assert bits.mean().item() == pytest.approx(nats / math.log(2) + math.log2(127.5), abs=0.02)


def test_the_likelihood_is_the_entropy_of_rounded_data_where_the_density_is_smooth():
    """With level 1 all but clean; only Jensen's share is left between them."""
    schedule = linear()
    k = ((normal(4, 1, 100, 100) * STD + MU) * 127.5).round() / 127.5
    own = -torch.log2(torch.special.ndtr((k + 1 / 255 - MU) / STD) - torch.special.ndtr((k - 1 / 255 - MU) / STD))
    gap = (
        ode.bits_per_dim(gaussian(schedule, MU, STD), schedule, k, seeded(), tol=1e-5) - own.flatten(1).mean(1)
    ).mean()
    assert abs(gap.item()) < 2e-3


# ---------------------------------------------------------------- nearest neighbours


def test_nearest_finds_copies_and_their_exact_distance():
    rng = np.random.default_rng(0)
    training = rng.integers(0, 256, (50, 3, 6, 6), dtype=np.uint8)
    pictures = torch.from_numpy(training[[7, 41]].copy())
    pictures[1] = torch.where(pictures[1] < 128, pictures[1] + 3, pictures[1] - 3)
    distance, index = nearest(pictures, training, chunk=8)
    assert index.tolist() == [[7], [41]]
    assert_close(distance, torch.tensor([[0.0], [3.0]], dtype=torch.float64))


@pytest.mark.parametrize("chunk", [1, 3, 8])
def test_nearest_are_in_order_whatever_lies_between_them(chunk):
    plain = np.array([0, 100, 60, 200, 240], np.uint8).reshape(5, 1, 1, 1).repeat(4, axis=2)
    pictures = torch.tensor([180, 20], dtype=torch.uint8).reshape(2, 1, 1, 1).expand(2, 1, 4, 1)
    distance, index = nearest(pictures, plain, 3, chunk)
    assert index.tolist() == [[3, 4, 1], [0, 2, 1]] and distance.tolist() == [[20, 60, 80], [20, 40, 80]]


@pytest.mark.parametrize("side", [16, 64])
def test_nearest_finds_the_copy_among_pictures_that_differ_by_one_pixel(side):
    """In float32 the sums of squares of bright pictures round away such a difference."""
    rng = np.random.default_rng(1)
    copy = rng.integers(200, 255, (3, side, side), dtype=np.uint8)
    training = np.repeat(copy[None], 30, axis=0)
    for k in range(29):
        training[k].flat[rng.choice(copy.size, k + 1, replace=False)] += 1
    distance, index = nearest(torch.from_numpy(copy)[None], training, 30)
    assert index[0, 0] == 29 and distance[0, 0] == 0 and (distance[0].diff() >= 0).all()
    assert_close(distance[0] ** 2, torch.arange(30, dtype=torch.float64) / copy.size)


@pytest.mark.parametrize("chunk", [1, 7, 20, 1024])
def test_nearest_is_that_of_all_distances_by_hand(chunk):
    """Of dark pictures and bright ones; near to one, and far from all; whatever the chunks are."""
    rng = np.random.default_rng(0)
    dark_and_bright = (rng.random((40, 1, 1, 1)) * rng.integers(0, 256, (40, 3, 2, 2))).astype(np.uint8)
    training, far = dark_and_bright[:20], dark_and_bright[20:]
    some = np.concatenate([training[::-1] // 2 * 2, far])
    every = np.sqrt(((some[:, None].astype(float) - training) ** 2).mean((2, 3, 4)))
    distance, index = (found[:, 0] for found in nearest(torch.from_numpy(some), training, chunk=chunk))
    assert index.tolist() == every.argmin(1).tolist() and index[:20].tolist() == list(range(20))[::-1]
    assert_close(distance, torch.from_numpy(every.min(1)))


def test_verdict_tells_copies_from_new_pictures():
    unseen, fresh = 20 + normal(200).abs(), 20 + normal(200, seed=1).abs()
    same, copies = verdict(fresh, unseen), verdict(torch.zeros(200, dtype=torch.float64), unseen)
    assert not same["memorised"] and abs(same["closer"] - 0.5) < 3 * same["error"]
    assert copies["memorised"] and copies["closer"] == 1 and copies["very_close"] == 1
    assert verdict(unseen, unseen)["closer"] == 0.5


def test_verdict_by_hand():
    unseen = torch.arange(21, dtype=torch.float64)  # 5 % lie below 1
    found = verdict(torch.tensor([0.5, 1.5, 10.0, 30.0], dtype=torch.float64), unseen)
    assert found["very_close"] == 0.25
    assert found["closer"] == pytest.approx((20 + 19 + 10.5 + 0) / (4 * 21))
    assert found["error"] == pytest.approx((26 / (12 * 4 * 21)) ** 0.5)
    assert not found["memorised"] and found["closer"] > 0.5 + 0.3 * found["error"]
    assert verdict(torch.tensor([0.99, 1.01], dtype=torch.float64), unseen)["very_close"] == 0.5


def test_verdict_calls_it_memory_from_three_standard_errors_on():
    n, said = 200, []
    for closer_by in range(0, 40, 2):
        share = 1 - (1 - closer_by / n) ** 2 / 2  # of the pairs i - closer_by < j, those of equal places counted half
        found = verdict(torch.arange(n).double() - closer_by, torch.arange(n).double())
        assert found["closer"] == pytest.approx(share)
        assert found["memorised"] == (share > 0.5 + 3 * ((2 * n + 1) / (12 * n * n)) ** 0.5)
        said.append(found["memorised"])
    assert 5 < sum(said) < 15


@pytest.mark.parametrize(("n", "memorised"), [(1, None), (6, None), (7, True)])
def test_there_is_no_verdict_where_not_even_copies_could_be_told(n, memorised):
    copies, unseen = torch.zeros(n, dtype=torch.float64), torch.ones(n, dtype=torch.float64)
    assert verdict(copies, unseen)["memorised"] is memorised


def test_a_split_of_the_reference_is_that_of_the_training_with_its_labels():
    data = replace(PRESETS["smoke"].data, count=40, seed=5)
    whole = reference.load(data, "all")
    assert np.array_equal(whole.pixels, sources.load("textiles", size=data.size, channels=3, count=40, seed=5).pixels)
    for split, chosen in zip(("train", "val"), sources.split(whole, data.val_fraction, data.seed)):
        part = reference.load(data, split)
        assert np.array_equal(part.pixels, whole.pixels[chosen])
        assert np.array_equal(part.labels, whole.labels[chosen])
        some = reference.every(part, 4)
        spread = np.arange(4) * len(chosen) // 4  # 0, a quarter, a half, three quarters
        assert np.array_equal(some.pixels, part.pixels[spread]) and np.array_equal(some.labels, part.labels[spread])


def test_a_picture_to_edit_stands_as_its_camera_was_held(tmp_path):
    image = np.arange(0, 192, dtype=np.uint8).reshape(8, 8, 3)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    Image.fromarray(image).save(tmp_path / "a.png", exif=exif)
    found = reference.open_picture(tmp_path / "a.png", (8, 8), 3)
    assert np.array_equal(found.transpose(1, 2, 0), np.rot90(image, -1))


def test_no_unseen_textile_is_a_training_picture_from_another_dye_lot():
    """Two lots of one yarn are at most 12 grey levels apart, or 13 where it catches the light; two cloths are more."""
    data = replace(PRESETS["smoke"].data, count=1500, size=(16, 16))
    seen, new = reference.load(data, "all").pixels, reference.unseen(data, 40)
    assert len(new.pixels) == len(new.labels) == len(reference.unseen(replace(data, count=8), 40).pixels) == 40

    def apart(pictures):
        return np.array([np.abs(seen.astype(np.int16) - p).max(axis=(1, 2, 3)).min() for p in pictures])

    assert apart(new.pixels).min() > 13
    drawn, labels = textiles.draw(80, data.seed + 1, data.size)
    kept = np.array([any((p == q).all() for q in new.pixels) for p in drawn])
    passed = np.arange(80) < kept.nonzero()[0][-1]
    assert (~kept & passed).any() and (apart(drawn[~kept & passed]) <= 13).all()  # no other one was left out
    assert labels[kept].tolist() == new.labels.tolist()


def test_unseen_pictures_of_a_folder_are_some_of_those_held_out(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "pictures").mkdir()
    for i in range(12):
        Image.new("L", (16, 16), 20 * i).save(tmp_path / f"pictures/{i:02}.png")
    data = replace(PRESETS["smoke"].data, source=str(tmp_path / "pictures"), val_fraction=0.5)
    _, val = sources.split(reference.load(data, "all"), 0.5, data.seed)
    assert (reference.unseen(data, 3).pixels[:, 0, 0, 0] // 20).tolist() == val[::2].tolist()


# ---------------------------------------------------------------- evaluate.py


def measure(program, run_folder, name, *more):
    code, out, err = program("evaluate", name, "--ckpt", run_folder, "--out", "o", *more)
    assert code == 0, err
    return out, err, json.loads(Path(f"o/{name}.json").read_text())


def test_the_pictures_are_drawn_in_the_precision_asked_for_and_all_else_in_float32(program, lively, monkeypatch):
    """And by the compiled network; the protocol says both."""
    seen, compiled = set(), []
    real = UNet.forward

    def forward(self, x, t, y=None):
        out = real(self, x, t, y)
        seen.add(out.dtype)
        return out

    monkeypatch.setattr(UNet, "forward", forward)
    monkeypatch.setattr(torch, "compile", lambda net: compiled.append(net) or net)
    common = ("-n", 4, "--features", "random", "--steps", 2)
    _, _, exact = measure(program, lively, "kid", *common)
    assert seen == {torch.float32} and not compiled
    assert (exact["protocol"]["precision"], exact["protocol"]["compile"]) == ("fp32", False)
    seen.clear()
    _, _, rough = measure(program, lively, "kid", *common, "--precision", "bf16", "--compile")
    assert seen == {torch.bfloat16} and len(compiled) == 1
    assert (rough["protocol"]["precision"], rough["protocol"]["compile"]) == ("bf16", True)
    assert rough["figures"] != exact["figures"] and rough["figures"] == pytest.approx(exact["figures"], rel=0.2)


@pytest.mark.parametrize("name", ["fid", "kid"])
def test_distance_writes_its_protocol_and_never_calls_a_substitute_fid(program, run_folder, name):
    out, err, report = measure(program, run_folder, name, "-n", 6, "--features", "random", "--steps", 2)
    assert "FID" not in out and "KID" not in out
    assert ("few for a Frechet distance" in err) == (name == "fid")
    figures = report["figures"]
    if name == "fid":
        assert f"Frechet distance of random features: {figures['frechet_distance_random']:.5g}, 6 samples" in out
    else:
        mean, std, size = (figures[f"mmd2_random{end}"] for end in ("", "_std", "_subset"))
        assert f"{mean:.5g} ± {std:.3g} over subsets of {size}, 6 samples" in out and size == 3
    protocol = report["protocol"]
    expected = {"n": 6, "data": "textiles", "split": "train", "sampler": "ddim", "steps": 2, "eta": 0.0, "seed": 0}
    assert expected.items() <= protocol.items()
    assert protocol["weights"] == "ema" and len(protocol["checkpoint_sha256"]) == len(protocol["features_sha256"]) == 64


def test_the_protocol_names_the_options_of_the_sampler_used_and_no_other(program, run_folder):
    for sampler, options in {
        "ddim": {"eta": 0.0, "spacing": "time"}, "dpmpp": {"spacing": "logsnr"}, "heun": {"rho": 7.0},
        "pc": {"snr": 0.16, "corrector_steps": 1}, "ddpm": {"variance": "small"}, "ode": {"tol": 0.01},
    }.items():  # fmt: skip
        asked = ("-n", 2, "--sampler", sampler, "--steps", 2)
        for name, extra in (("fid", ("--features", "pixels")), ("nearest", ())):
            protocol = measure(program, run_folder, name, *asked, *extra)[2]["protocol"]
            some = {name for declared in sampling.OPTIONS.values() for name in declared} & protocol.keys()
            assert {name: protocol[name] for name in some} == options


@pytest.mark.parametrize("command", ["fid", "kid", "nearest"])
def test_eta_is_refused_where_the_sampler_has_none(program, run_folder, command):
    code, _, err = program("evaluate", command, "--ckpt", run_folder, "--sampler", "dpmpp", "--eta", 0)
    assert code == 2 and "--eta 0: dpmpp has none" in err


@pytest.mark.parametrize("command", ["speed", "sweep"])
def test_eta_is_refused_where_none_of_the_samplers_has_one_and_recorded_where_one_has(program, run_folder, command):
    flags = ("--ckpt", run_folder, "-n", 4, "--steps", 2)
    code, _, err = program("evaluate", command, *flags, "--samplers", "dpmpp,heun", "--eta", 0.7)
    assert code == 2 and err == "error: --eta 0.7: dpmpp and heun have none; leave it out, or take ddim\n"
    recorded = []
    for asked in (("--samplers", "dpmpp"), ("--samplers", "dpmpp,ddim"), ("--samplers", "ddim", "--eta", 0.7)):
        recorded.append(measure(program, run_folder, command, *flags[2:], *asked)[2]["protocol"].get("eta"))
    assert recorded == [None, 0.0, 0.7]


@pytest.fixture(scope="module")
def awake(run_folder, tmp_path_factory):
    """A checkpoint whose network hears labels and guidance, and that samples in its own way: all but the defaults."""
    config, state = checkpoint.load(run_folder / "last.pth")
    data, sample = replace(config.data, count=40, seed=5), replace(config.sample, steps=3, eta=0.5, guidance=3.0)
    for seed, weights in enumerate((state["model"], state["ema"])):
        generator = torch.Generator().manual_seed(seed)
        for name, weight in weights.items():
            weights[name] = weight + 0.1 * torch.randn(weight.shape, generator=generator)
    more = {"model": state["model"], "ema": state["ema"], "step": 8, "classes": state["classes"]}
    path = tmp_path_factory.mktemp("awake") / "last.pth"
    checkpoint.save(path, replace(config, data=data, sample=sample), **more)
    return path


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of pictures that are no textiles, in two classes that the model does not know."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for i in range(24):
        coarse = torch.from_numpy(rng.integers(0, 256, (3, 4, 4), dtype=np.uint8))
        (folder / "ab"[i % 2]).mkdir(exist_ok=True)
        pictures.save_png(folder / "ab"[i % 2] / f"{i:02}.png", pictures.upscale(coarse, 4))
    return folder


def drawn(path, n, weights="ema", seed=0, guidance=3.0, steps=3, eta=0.5, sampler="ddim"):
    """The n pictures of a sampler by hand; by default as the config of `awake` says."""
    model, config, _ = checkpoint.load_model(path, "cpu", weights)
    diffusion, noise = GaussianDiffusion.from_config(config.diffusion), image_noise(seed, range(n))
    x = noise(torch.empty(n, config.data.channels, *config.data.size))
    denoise = diffusion.denoiser(model, torch.arange(n) % config.model.num_classes, guidance=guidance)
    schedule = diffusion.schedule
    levels, options = {
        "ddim": (spaced(diffusion.T, steps), {"eta": eta}),
        "dpmpp": (spaced_logsnr(schedule, steps), {}),
        "heun": (spaced_rho(schedule, steps, 7.0), {}),
    }[sampler]
    walk = samplers.SAMPLERS[sampler](denoise, schedule, x, timesteps=levels, noise_like=noise, **options)
    return to_uint8(last(walk).x)


AS_ASKED = pytest.mark.parametrize(
    "asked",
    [{}, {"weights": "raw", "seed": 4, "guidance": 0.5, "steps": 2, "eta": 0.25}, {"sampler": "dpmpp", "steps": 4}],
    ids=["as the run", "by flags", "another sampler"],
)


def flags(asked):
    """{"seed": 4} -> ["--seed", 4]."""
    return [part for name, value in asked.items() for part in (f"--{name}", value)]


@AS_ASKED
@pytest.mark.parametrize("own", [True, False], ids=["own data", "--data"])
def test_nearest_is_that_of_pictures_drawn_by_hand(program, awake, photos, asked, own):
    """In small batches, and yet with the noise and the class of each number; the figure shows the closest first."""
    data = checkpoint.load(awake)[0].data
    data = data if own else replace(data, source=str(photos))
    more = () if own else ("--data", photos)
    _, _, report = measure(program, awake, "nearest", "-n", 20, "--batch-size", 7, *more, *flags(asked))
    training, unseen = reference.load(data).pixels, torch.from_numpy(reference.unseen(data, 20).pixels)
    n = min(20, len(unseen))
    samples = drawn(awake, n, **asked)
    far, index = (found[:, 0] for found in nearest(samples, training))
    far_unseen = nearest(unseen, training)[0][:, 0]
    rows = np.loadtxt("o/nearest.csv", delimiter=",", skiprows=1)
    assert rows[:, 0].tolist() == list(range(n)) and rows[:, 1].tolist() == index.tolist()
    assert_close(torch.from_numpy(rows[:, 2]), far, rtol=0, atol=0.02)
    expected = {
        **verdict(far, far_unseen), "distance_of_samples": far.median().item(),
        "distance_of_unseen": far_unseen.median().item(), "closest_sample": far.min().item(),
    }  # fmt: skip
    assert report["figures"] == pytest.approx(expected, abs=0.02)
    order = far.argsort()[:16]
    pairs = torch.stack([samples[order], torch.from_numpy(training[index[order].numpy()])], dim=1).flatten(0, 1)
    figure, wanted = pictures.load_png("o/nearest.png"), pictures.grid(pictures.upscale(pairs, 4), columns=8)
    assert figure.shape == wanted.shape
    assert (figure.int() - wanted.int()).abs().max() <= 1  # another batch size may round otherwise


def check_distance(program, path, command, name, split, data, asked):
    """Both by the program, in small batches, and by hand."""
    see, of = features.extractor(name), reference.load(data, split)
    x, y = see(drawn(path, 9, **asked)), see(torch.from_numpy(of.pixels))
    more = ("-n", 9, "--batch-size", 4, "--features", name, "--split", split, "--data", data.source, *flags(asked))
    _, _, report = measure(program, path, command, *more)
    figures = {"fid": compare.frechet_figures, "kid": compare.kernel_figures}[command](x, y, name)
    assert report["figures"] == pytest.approx(figures, rel=1e-2, abs=1e-4)
    assert report["protocol"]["reference_n"] == len(of.pixels)


@AS_ASKED
def test_distances_are_those_of_pictures_drawn_by_hand(program, awake, asked):
    for command in ("fid", "kid"):
        check_distance(program, awake, command, "pixels", "train", checkpoint.load(awake)[0].data, asked)


def test_distances_are_to_the_data_the_split_and_in_the_features_asked_for_whatever_is_cached(program, awake, photos):
    own = checkpoint.load(awake)[0].data
    others = replace(own, source=str(photos))
    for data, split, name in [
        (own, "train", "pixels"), (own, "train", "random"), (own, "val", "random"), (own, "all", "random"),
        (others, "train", "random"), (own, "train", "pixels"),
    ]:  # fmt: skip
        check_distance(program, awake, "fid", name, split, data, {})


@pytest.mark.parametrize(("flags", "eta"), [((), 0.5), (("--eta", "0"), 0.0)])
def test_by_default_the_samples_measured_are_those_that_the_run_draws(program, run_folder, monkeypatch, flags, eta):
    """Steps, guidance and eta of the run's config, as in generate.py."""
    real, seen = checkpoint.load_model, []

    def load_model(*args):
        model, config, state = real(*args)
        return model, replace(config, sample=replace(config.sample, steps=3, eta=0.5)), state

    def watched(*args, **kwargs):
        seen.append((kwargs["eta"], len(kwargs["timesteps"])))
        return samplers.ddim(*args, **kwargs)

    monkeypatch.setattr(checkpoint, "load_model", load_model)
    monkeypatch.setitem(samplers.SAMPLERS, "ddim", watched)
    for name, extra in (("fid", ("--features", "pixels")), ("nearest", ())):
        _, _, report = measure(program, run_folder, name, "-n", 2, *extra, *flags)
        assert report["protocol"]["eta"] == eta and seen.pop() == (eta, 3) and not seen


def test_reference_features_are_cached_and_a_damaged_cache_is_made_again(program, run_folder, tmp_path):
    command = ("-n", 4, "--features", "pixels", "--steps", 1)
    _, _, first = measure(program, run_folder, "fid", *command)
    (cached,) = (tmp_path / "cache/diffusion").glob("features-*.npy")
    stamp = cached.stat().st_mtime_ns
    _, _, second = measure(program, run_folder, "fid", *command)
    assert cached.stat().st_mtime_ns == stamp and second["figures"] == first["figures"]
    cached.write_bytes(cached.read_bytes()[:-8])
    _, _, third = measure(program, run_folder, "fid", *command)
    assert third["figures"] == first["figures"]


def test_the_figure_does_not_depend_on_the_batch_size(program, run_folder):
    command = ("-n", 5, "--features", "pixels", "--steps", 2)
    one, two = (measure(program, run_folder, "fid", *command, "--batch-size", b)[2] for b in (5, 2))
    assert one["figures"]["frechet_distance_pixels"] == pytest.approx(
        two["figures"]["frechet_distance_pixels"], rel=1e-4
    )


def test_bpd_adds_up_by_term_and_by_t(program, run_folder):
    out, _, report = measure(program, run_folder, "bpd", "-n", 4, "--levels", 10)
    assert out.startswith(f"{run_folder / 'best.pth'}: preset smoke, step ") and ", cpu\n" in out
    assert "\nprotocol  " in out and out.endswith("\nwritten   o/bpd.json\n")
    figures = report["figures"]
    assert figures["bits_per_dim"] == pytest.approx(figures["L_0"] + figures["L_t"] + figures["L_T"])
    rows = [line.split(",") for line in Path("o/by_t.csv").read_text().split()[1:]]
    assert sum(float(r[2]) for r in rows) == pytest.approx(figures["L_t"])
    assert (int(rows[0][0]), int(rows[-1][1])) == (2, 50)


@pytest.fixture
def outgrown(photos, awake, tmp_path):
    """A run's checkpoint, and the folder that it was trained on, where a picture more lies now."""
    shutil.copytree(photos, tmp_path / "photos")
    config, state = checkpoint.load(awake)
    config = replace(config, data=replace(config.data, source=str(tmp_path / "photos"), val_fraction=0.5))
    state = {k: state[k] for k in ("model", "ema", "step", "classes")}
    checkpoint.save(tmp_path / "best.pth", config, **state, train_images=12)
    assert reference.load(config.data, "train", 12).pixels.shape[0] == 12  # as long as nothing has changed
    for name in "xy":
        shutil.copy(photos / "a/00.png", tmp_path / f"photos/a/{name}.png")
    return tmp_path / "best.pth"


@pytest.mark.parametrize(
    ("name", "argv"),
    [
        ("evaluate", ("nearest", "-n", 2)),
        ("evaluate", ("bpd", "-n", 2, "--levels", 2)),
        ("evaluate", ("bpd", "-n", 2, "--levels", 2, "--split", "train")),
        ("evaluate", ("fid", "-n", 4, "--features", "random")),
        ("edit", ("invert", "--steps", 2)),
        ("explore", ("denoise",)),
        ("explore", ("loss", "--images", 2, "--points", 2)),
    ],
)
def test_which_pictures_were_held_out_is_not_guessed_when_their_number_has_changed(program, outgrown, name, argv):
    code, _, err = program(name, *argv, "--ckpt", outgrown, "--out", "o")
    assert code == 2 and err.splitlines()[-1].startswith("error: ") and not list(Path("o").glob("[!.]*"))
    assert "photos: the data has changed: 13 training images, and the network was trained on 12" in err
    assert "bring them back" in err


def test_data_of_ones_own_choice_is_no_changed_data(program, outgrown):
    data = ("--ckpt", outgrown, "--data", outgrown.parent / "photos", "--out", "o")
    assert program("evaluate", "nearest", "-n", 2, *data)[0] == 0
    assert program("explore", "loss", "--images", 2, "--points", 2, *data)[0] == 0


@pytest.mark.parametrize("name", ["best.pth", "last.pth"])
def test_a_run_says_how_many_pictures_it_was_trained_on_and_whoever_does_not_is_believed(run_folder, name, tmp_path):
    config, state = checkpoint.load(run_folder / name)
    painter = Painter.open(run_folder / name)
    assert painter.trained_on == len(reference.load(config.data).pixels)
    checkpoint.slim(run_folder / name, tmp_path / "slim.pth")
    assert Painter.open(tmp_path / "slim.pth").trained_on is None
    kept = {k: state[k] for k in ("model", "ema", "step")}
    checkpoint.save(tmp_path / "odd.pth", config, **kept, train_images=torch.zeros(3))
    assert Painter.open(tmp_path / "odd.pth").trained_on is None


@pytest.mark.parametrize(("split", "labels"), [("val", "given"), ("train", "given"), ("photos", "none")])
def test_bpd_is_the_bound_by_hand_of_the_images_with_their_labels(program, awake, photos, split, labels):
    """Every batch draws its own levels; those of a class that the model does not know are coded without one."""
    path, seed, levels, n, size = awake, 2, 6, 5, 2
    model, config, _ = checkpoint.load_model(path)
    data = replace(config.data, source=str(photos)) if split == "photos" else config.data
    images = reference.every(reference.load(data), n) if split == "train" else reference.unseen(data, n)
    more = ("--data", photos) if split == "photos" else ("--split", split)
    flags = ("-n", n, "--batch-size", size, "--levels", levels, "--seed", seed, "--variance", "large")
    _, _, report = measure(program, path, "bpd", *flags, *more)
    diffusion, parts = GaussianDiffusion.from_config(config.diffusion), []
    for start in range(0, n, size):
        numbers = range(start, min(n, start + size))
        y = torch.from_numpy(images.labels[numbers]) if labels == "given" else None
        network, rng = diffusion.denoiser(model, y), np.random.default_rng((seed, start, 1))
        denoise = lambda x, t, network=network: tuple(z.double() for z in network(x.float(), t))  # noqa: E731
        draw = lambda low, high, rng=rng: int(rng.integers(low, high + 1))  # noqa: E731
        x_0 = from_uint8(torch.from_numpy(images.pixels[numbers])).double()
        terms = bound.bound(denoise, diffusion.schedule, x_0, image_noise(seed, numbers), draw, levels, "large")
        parts.append(torch.stack([bound.in_bits(nats, x_0) for nats in terms], dim=1))
    table = torch.cat(parts)
    total, mean = table.sum(dim=1), table.mean(dim=0)
    expected = {
        "bits_per_dim": total.mean(), "standard_error": total.std() / n**0.5,
        "L_0": mean[0], "L_t": mean[1:-1].sum(), "L_T": mean[-1],
    }  # fmt: skip
    assert report["figures"] == pytest.approx({k: v.item() for k, v in expected.items()}, rel=1e-6)
    rows = np.loadtxt("o/by_t.csv", delimiter=",", skiprows=1)
    assert [tuple(row) for row in rows[:, :2].tolist()] == bound.strata(50, levels)
    assert_close(torch.from_numpy(rows[:, 2]), mean[1:-1])
    assert_close(torch.from_numpy(rows[:, 3]), mean[1:-1] / torch.from_numpy(rows[:, 1] - rows[:, 0] + 1))
    assert_close(torch.from_numpy(np.loadtxt("o/by_image.csv", delimiter=",", skiprows=1)[:, 1]), total)
    assert report["protocol"]["labels"] == labels


def test_loglik_of_a_perfect_network_is_the_closed_form_image_by_image(program, run_folder, monkeypatch):
    def perfect(self, model, y, clip):
        assert not clip
        return gaussian(self.schedule, MU, STD)

    schedule, draws = linear(), []  # finer than the run's own
    monkeypatch.setattr(GaussianDiffusion, "denoiser", perfect)
    monkeypatch.setattr(GaussianDiffusion, "from_config", lambda config: GaussianDiffusion(schedule))
    options = ("-n", 5, "--batch-size", 2, "--tol", 1e-5, "--seed", 3, "--probes")
    measure(program, run_folder, "loglik", *options, 1)
    first, errors = zip(*(line.split(",")[1:] for line in Path("o/by_image.csv").read_text().split()[1:]))
    first = [float(bits) for bits in first]
    assert set(errors) == {""}  # a single draw has no deviation
    _, _, report = measure(program, run_folder, "loglik", *options, 2)
    x_0 = from_uint8(torch.from_numpy(reference.unseen(PRESETS["smoke"].data, 5).pixels)).double()
    noise = image_noise(3, range(5))
    for _ in range(2):  # each draw dequantises anew, and then takes a probe, on which this data does not depend
        x = x_0 + (torch.special.ndtr(noise(x_0)) - 0.5) / 127.5
        draws.append(bits_at_level_1(schedule, x).flatten(1).mean(1))
        noise(x_0)
    bits = torch.stack(draws).mean(0)
    rows = np.loadtxt("o/by_image.csv", delimiter=",", skiprows=1)
    assert_close(torch.from_numpy(rows[:, 1]), bits, rtol=0, atol=5e-3)
    assert_close(torch.from_numpy(rows[:, 1] - first), bits - draws[0], rtol=0, atol=1e-5)
    assert_close(torch.from_numpy(rows[:, 2]), (draws[0] - draws[1]).abs() / 2, rtol=0, atol=1e-5)
    assert report["figures"]["bits_per_dim"] == pytest.approx(bits.mean().item(), abs=5e-3)
    assert report["figures"]["standard_error"] == pytest.approx(bits.std().item() / 5**0.5, abs=5e-3)
    expected = {"split": "unseen", "images": 5, "labels": "given", "probes": 2, "dequantisation": "uniform"}
    assert expected.items() <= report["protocol"].items()


def test_loglik_does_not_depend_on_the_batch_size(program, run_folder):
    one, two = (
        measure(program, run_folder, "loglik", "-n", 3, "--batch-size", b, "--tol", 1e-3)[2]["figures"] for b in (3, 2)
    )
    assert one["bits_per_dim"] == pytest.approx(two["bits_per_dim"], abs=0.01)


def test_nearest_draws_a_figure_and_says_a_verdict(program, run_folder):
    out, err, report = measure(program, run_folder, "nearest", "-n", 5, "--steps", 2)
    assert "verdict   none: 5 samples" in out and err == "" and Path("o/nearest.png").exists()
    assert report["figures"]["memorised"] is None
    assert report["protocol"]["compared"] == 5 and len(Path("o/nearest.csv").read_text().split()) == 6


def test_speed_and_sweep_have_a_row_for_every_sampler_and_number_of_steps(program, run_folder):
    for name in ("speed", "sweep"):
        asked = ("-n", 4, "--samplers", "ddpm,ddim", "--steps", "1,3", "--eta", 0.3, "--guidance", 1.7)
        protocol = measure(program, run_folder, name, *asked)[2]["protocol"]
        assert (protocol["eta"], protocol["guidance"]) == (0.3, 1.7)
        rows = [line.split(",") for line in Path(f"o/{name}.csv").read_text().split()[1:]]
        assert [tuple(r[:3]) for r in rows if r[0] != "unseen"] == [
            ("ddpm", "1", "1"), ("ddpm", "3", "3"), ("ddim", "1", "1"), ("ddim", "3", "3"),
        ]  # fmt: skip
    assert Path("o/sweep.png").exists()


@pytest.mark.parametrize("command", ["speed", "sweep"])
def test_left_out_the_numbers_of_steps_are_at_most_T(program, run_folder, tmp_path, command):
    config, state = checkpoint.load(run_folder / "best.pth")
    config = override(config, {"diffusion.T": 12, "diffusion.beta_end": 0.9, "sample.steps": 2})
    checkpoint.save(tmp_path / "short.pth", config, **{key: state[key] for key in ("model", "ema", "step", "classes")})
    figures = measure(program, "short.pth", command, "-n", 2, "--samplers", "ddim")[2]["figures"]
    figures = figures.get("frechet_distance_random", figures)
    assert [name for name in figures if name != "unseen"] == ["ddim_5", "ddim_10", "ddim_12"]


@pytest.mark.parametrize("command", ["fid", "kid", "nearest", "speed", "sweep"])
def test_an_eta_that_is_too_large_is_refused_before_anything_is_drawn_or_loaded(
    program, run_folder, monkeypatch, command
):
    def work(*_, **__):
        raise AssertionError("too late")

    monkeypatch.setattr(Subject, "draw", work)
    monkeypatch.setattr(reference, "load", work)
    several = {"speed": ("--samplers", "ddpm,ddim"), "sweep": ("--samplers", "ddpm,ddim")}.get(command, ())
    features = ("--features", "random") if command in ("fid", "kid", "sweep") else ()
    code, _, err = program(
        "evaluate", command, "--ckpt", run_folder, "-n", 4, "--steps", 5, "--eta", 9, *several, *features
    )
    assert code == 2 and err.splitlines()[-1].startswith("error: --eta 9: eta must be from 0 to"), err


def test_speed_draws_all_at_once_so_n_is_its_batch_and_it_has_no_other(program, run_folder):
    command = ("-n", 3, "--samplers", "ddim", "--steps", 1)
    protocol = measure(program, run_folder, "speed", *command)[2]["protocol"]
    assert (protocol["n"], protocol["batch_size"]) == (3, 3) and "batch" not in protocol
    code, _, err = program("evaluate", "speed", "--ckpt", run_folder, *command, "--batch-size", 2)
    assert code == 2 and "unknown argument --batch-size here: it is for fid, kid," in err


def test_speed_counts_the_pictures_of_all_processes_until_the_slowest_is_done(tmp_path, monkeypatch):
    class Two(Processes):
        def gather(self, thing):
            return [thing, 2 * thing]

    class Drawing:
        group, guidance = Two(0, 2, torch.device("cpu")), 1.0
        bar, steps, options = Subject.bar, staticmethod(lambda n, sampler: n), staticmethod(lambda *_: {})

        def draw(self, numbers, sampler, steps, eta):
            clock.append(clock[-1] + 0.5 * steps + 100 * (len(clock) == 1))  # the first call is slow, and not counted
            return None, steps

    clock = [0.0]
    args = evaluate.parser().parse_args(["speed", "-n", "6", "--samplers", "ddim", "--steps", "1,4"])
    monkeypatch.setattr(time, "perf_counter", lambda: clock[-1])
    _, rates = speed(Drawing(), args, tmp_path)
    assert rates == {"ddim_1": 12 / 1.0, "ddim_4": 12 / 4.0}


def test_sweep_is_the_distance_by_hand_against_the_evaluations_a_picture(program, awake, monkeypatch):
    """Heun asks twice a step, but once in the last; it is plotted against that, whatever the batches are.

    Beside them is what images that are as good as real score.
    """
    kept = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **kwargs: kept.append(self))
    _, err, report = measure(
        program, awake, "sweep", "-n", 6, "--batch-size", 4, "--samplers", "ddim,heun", "--steps", "4,2", "--seed", 3
    )
    rows = [line.split(",") for line in Path("o/sweep.csv").read_text().split()[1:]]
    assert [tuple(r[:3]) for r in rows] == [
        ("ddim", "4", "4"), ("ddim", "2", "2"), ("heun", "4", "7"), ("heun", "2", "3"), ("unseen", "", ""),
    ]  # fmt: skip
    data = checkpoint.load(awake)[0].data
    reals, unseen = (torch.from_numpy(i.pixels) for i in (reference.load(data), reference.unseen(data, 6)))
    for row in rows:
        by_hand = lambda: drawn(awake, 6, seed=3, sampler=row[0], steps=int(row[1]), eta=0.0)  # noqa: B023, E731
        samples = unseen if row[0] == "unseen" else by_hand()
        expected = compare.compare(samples, reals, features.extractor("random"))
        assert [float(v) for v in row[3:6]] == pytest.approx(list(expected.values())[:3], rel=1e-2, abs=1e-4)
    lines = {line.get_label(): line.get_xydata().tolist() for line in kept[0].axes[0].lines}
    of = {name: sorted([int(r[2]), float(r[3])] for r in rows if r[0] == name) for name in ("ddim", "heun")}
    of["unseen real images"] = [[0, float(rows[-1][3])], [1, float(rows[-1][3])]]  # from side to side
    assert lines == of and kept[0].axes[0].get_xticks().tolist() == [2, 3, 4, 7]
    assert "6 images are few for a Frechet distance" in err
    assert report["figures"]["frechet_distance_random"] == {
        **{f"{r[0]}_{r[1]}": float(r[3]) for r in rows[:-1]}, "unseen": float(rows[-1][3]),
    }  # fmt: skip


@pytest.mark.parametrize(("split", "unseen"), [("train", 1), ("val", 0), ("all", 0)])
def test_a_sweep_of_images_that_the_reference_may_hold_has_none_that_are_unseen(program, run_folder, split, unseen):
    measure(program, run_folder, "sweep", "-n", 4, "--samplers", "ddim", "--steps", 1, "--split", split)
    assert Path("o/sweep.csv").read_text().count("unseen") == unseen


def test_a_sweep_of_more_images_than_were_held_out_has_none_that_are_unseen(program, run_folder, few):
    """Fewer would be farther off by their number alone."""
    data = few(20)  # a quarter of them is held out
    for n, there in ((6, False), (5, True)):
        measure(program, run_folder, "sweep", "-n", n, "--samplers", "ddim", "--steps", 1, "--data", data)
        assert ("unseen" in Path("o/sweep.csv").read_text()) == there


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (
            ("fid", "--weights-file", "none.pth"),
            ("--weights-file" if find_spec("torch_fidelity") else "torch-fidelity",),
        ),
        (("fid", "--features", "random", "--weights-file", "x"), ("have no weights",)),
        (("fid", "--features", "random", "--data", "nowhere"), ("nowhere",)),
        (("kid", "--features", "random", "--steps", "51"), ("--steps 51", "1 to 50")),
        (("kid", "--features", "random", "-n", "1"), ("-n: '1'", "from 2 to")),
        (("kid", "--features", "random", "--eta", "99", "--steps", "3"), ("--eta 99",)),
        (("sweep", "--samplers", "ddpm,euler"), ("argument --samplers: 'euler' is not one of ddpm, ddim,",)),
        (("speed", "--steps", "5,x"), ("argument --steps: 'x' is not a whole number of at least 1",)),
        (("fidd",), ("fidd",)),
    ],
)
def test_mistakes_are_one_line(program, run_folder, command, words):
    code, _, err = program("evaluate", *command, "--ckpt", run_folder)
    lines = [line for line in err.splitlines() if not line.startswith("warning")]
    assert code == 2 and len(lines) == 1
    assert all(word in err for word in words), err


@pytest.fixture
def few(tmp_path):
    """few(n): a folder of n pictures."""

    def make(n):
        (tmp_path / f"few{n}").mkdir()
        for i in range(n):
            pixels = np.random.default_rng(i).integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / f"few{n}" / f"{i}.png")
        return tmp_path / f"few{n}"

    return make


@pytest.mark.parametrize(("command", "there", "split"), [("kid", 1, "train"), ("fid", 3, "val"), ("sweep", 1, "all")])
def test_a_distance_to_one_image_is_refused(program, run_folder, few, command, there, split):
    flags = ("--features", "random", "-n", 4, "--steps", 1, "--split", split, "--data", few(there))
    code, _, err = program("evaluate", command, "--ckpt", run_folder, *flags)
    lines = [line for line in err.splitlines() if not line.startswith("warning")]
    assert code == 2 and len(lines) == 1
    assert f"1 image in the split '{split}', and a distance needs at least 2" in lines[0]


def test_a_distance_to_two_images_is_measured(program, run_folder, few):
    flags = ("--features", "random", "-n", 2, "--steps", 1, "--split", "all", "--data", few(2))
    assert measure(program, run_folder, "kid", *flags)[2]["protocol"]["reference_n"] == 2


@pytest.mark.parametrize("command", ["bpd", "loglik"])
def test_fewer_images_than_asked_for_are_coded_with_a_warning(program, run_folder, few, command):
    flags = ["--levels", 4] if command == "bpd" else []
    data = ("--data", few(3), "--split", "all")
    _, err, report = measure(program, run_folder, command, *data, "-n", 4, *flags)
    assert err == "warning: only 3 images are there (all), so 3 are coded\n" and report["protocol"]["images"] == 3
    assert measure(program, run_folder, command, *data, "-n", 3, *flags)[1] == ""


@pytest.mark.parametrize(("asked", "measured"), [(10, 10), (48, 48), (49, 49), (500, 49)])
def test_the_protocol_of_bpd_says_how_many_levels_were_measured(program, run_folder, asked, measured):
    _, _, report = measure(program, run_folder, "bpd", "-n", 2, "--levels", asked)
    rows = Path("o/by_t.csv").read_text().split()[1:]
    assert report["protocol"]["levels"] == len(rows) <= measured
    assert asked < 49 or len(rows) == measured


@pytest.mark.parametrize("command", ["bpd", "loglik"])
def test_the_bits_of_one_image_have_no_deviation(program, run_folder, few, command):
    out, _, report = measure(program, run_folder, command, "--data", few(1), *(["--levels", 4] * (command == "bpd")))
    assert report["figures"]["standard_error"] is None and math.isfinite(report["figures"]["bits_per_dim"])
    assert f"{report['figures']['bits_per_dim']:.4f} bits per dimension, n = 1" in out and "±" not in out


@pytest.fixture
def inception(monkeypatch):
    """A stand-in for torch-fidelity's network: mean colours, times the weight in the file, and something else."""

    class Network(torch.nn.Module):
        def __init__(self, name, features_list, feature_extractor_weights_path=None):
            super().__init__()
            assert (name, features_list) == ("inception-v3-compat", ["2048"])
            path = feature_extractor_weights_path
            # like the package, it would run what is in the file
            self.weight = torch.nn.Parameter(torch.load(path, weights_only=False)["weight"] if path else torch.ones(1))

        def forward(self, pictures):
            assert not self.training
            return pictures.float().mean((2, 3)) * self.weight, None

    module = SimpleNamespace(FeatureExtractorInceptionV3=Network)
    monkeypatch.setitem(sys.modules, "torch_fidelity", SimpleNamespace(feature_extractor_inceptionv3=module))
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", module)


def test_the_standard_features_are_those_of_the_weights_in_the_file(inception, tmp_path):
    pictures, digests = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8), set()
    for weight in (2.0, 3.0):
        torch.save({"weight": torch.tensor([weight])}, tmp_path / "w.pth")
        see = features.extractor("inception", weights_file=tmp_path / "w.pth")
        assert_close(see(pictures), weight * pictures.float().mean((2, 3)))
        assert not see(pictures).requires_grad
        digests.add(see.digest)
    assert len(digests) == 2
    with pytest.raises(UserError, match=r"none\.pth: no such file"):
        features.extractor("inception", weights_file=tmp_path / "none.pth")


def test_other_weights_of_the_same_network_are_not_answered_from_the_cache(program, run_folder, inception):
    found = []
    for weight in (2.0, 3.0):  # the features, and so the root of the distance, grow with it
        torch.save({"weight": torch.tensor([weight])}, "w.pth")
        _, _, report = measure(program, run_folder, "fid", "-n", 4, "--steps", 1, "--weights-file", "w.pth")
        found.append(report["figures"]["fid"])
    assert found[1] == pytest.approx(found[0] * 9 / 4, rel=1e-3)


def test_weights_that_are_fetched_are_checked_and_read_as_data(inception, monkeypatch):
    asked = []
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda url, **more: asked.append((url, more)))
    features.extractor("inception")
    ((url, more),) = asked
    assert url == features.URL and more["check_hash"] and more["weights_only"]


def test_a_hostile_weights_file_is_not_run(inception, tmp_path):
    import pickle

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "pwned"),)

    (tmp_path / "w.pth").write_bytes(pickle.dumps(Evil(), protocol=2))
    with pytest.raises(UserError, match="could not be loaded"):
        features.extractor("inception", weights_file=tmp_path / "w.pth")
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(("command", "rounds"), [("nearest", False), ("speed", True)])
def test_figures_are_of_float32_on_a_gpu_too_and_its_speed_is_as_it_comes(
    program, run_folder, monkeypatch, command, rounds
):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    more = ["--samplers", "ddim"] if command == "speed" else []
    assert program("evaluate", command, "--ckpt", run_folder, "-n", "2", "--steps", "2", *more)[0] == 0
    assert torch.backends.cudnn.allow_tf32 == rounds


def test_two_processes_measure_what_one_does(program, run_folder, tmp_path):
    command = ["nearest", "--ckpt", run_folder, "-n", "5", "--steps", "2", "--device", "cpu"]
    assert program("evaluate", *command, "--out", "one")[0] == 0
    root = Path(__file__).resolve().parent.parent
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*launch, str(root / "evaluate.py"), *map(str, command), "--out", "two"],
        cwd=tmp_path, capture_output=True, text=True, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "two/nearest.json").read_text())["protocol"]["processes"] == 2
    one, two = (np.loadtxt(tmp_path / name / "nearest.csv", delimiter=",", skiprows=1) for name in ("one", "two"))
    assert_close(one, two, rtol=0.01, atol=0.01)  # sample by sample, in order


# ---------------------------------------------------------------- what a report says


@pytest.mark.parametrize(
    ("name", "flags", "file", "header"),
    [
        (
            "sweep", ("-n", 4, "--samplers", "ddim", "--steps", 1), "sweep",
            "sampler,steps,evaluations,frechet_distance_random,mmd2_random,mmd2_random_std,seconds",
        ),
        ("speed", ("-n", 1, "--samplers", "ddim", "--steps", 1), "speed",
         "sampler,steps,evaluations,images_per_second"),
        ("nearest", ("-n", 2, "--steps", 1), "nearest", "sample,training_image,distance"),
        ("bpd", ("-n", 2, "--levels", 2), "by_t", "t_first,t_last,bits_per_dim,bits_per_dim_and_level"),
    ],
)  # fmt: skip
def test_the_columns_of_a_table_bear_the_names_of_what_is_in_them(program, run_folder, name, flags, file, header):
    measure(program, run_folder, name, *flags)
    assert Path(f"o/{file}.csv").read_text().splitlines()[0] == header


def test_a_sweep_is_of_the_eta_and_the_features_asked_for_and_its_plot_says_what_it_draws(program, awake, monkeypatch):
    kept = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **kwargs: kept.append(self))
    flags = ("-n", 6, "--samplers", "ddim", "--steps", 4, "--eta", 0.7, "--features", "pixels")
    _, _, report = measure(program, awake, "sweep", *flags)
    reals = torch.from_numpy(reference.load(checkpoint.load(awake)[0].data).pixels)
    found = compare.compare(drawn(awake, 6, steps=4, eta=0.7), reals, features.extractor("pixels"))
    distance = pytest.approx(found["frechet_distance_pixels"], rel=1e-2, abs=1e-4)
    assert report["figures"]["frechet_distance_pixels"]["ddim_4"] == distance
    axes = kept[0].axes[0]
    assert axes.get_ylabel() == "Frechet distance of pixels features, 6 samples"
    assert axes.get_xlabel() == "network evaluations a picture"


@pytest.mark.parametrize(("name", "more"), [("fid", ("--features", "pixels")), ("nearest", ())])
def test_the_protocol_says_what_was_asked_for(program, awake, name, more):
    asked = {"weights": "raw", "seed": 4, "guidance": 0.5, "steps": 2, "eta": 0.25}
    protocol = measure(program, awake, name, "-n", 4, "--batch-size", 3, *more, *flags(asked))[2]["protocol"]
    digest = hashlib.sha256(awake.read_bytes()).hexdigest()
    expected = asked | {"batch_size": 3, "step": 8, "checkpoint": str(awake), "checkpoint_sha256": digest}
    assert expected.items() <= protocol.items()
    assert measure(program, awake, name, "-n", 2, *more)[2]["protocol"]["guidance"] == 3.0


def test_the_likelihood_is_solved_to_the_tolerance_asked_for(program, run_folder, monkeypatch):
    seen = []
    monkeypatch.setattr(ode, "integrate", lambda f, x, a, b, tol: seen.append(tol) or (x, None))
    measure(program, run_folder, "loglik", "-n", 2, "--tol", 0.25)
    assert set(seen) == {0.25}


def test_an_interval_of_nothing_is_improbable_and_not_infinitely_so():
    edge = torch.tensor([-50.0, 5.0, 40.0], dtype=torch.float64)
    assert torch.isfinite(bound._log_interval(edge, edge)).all()
    assert_close(bound._log_interval(edge[2:], edge[2:] + 1), bound._log_interval(-edge[2:] - 1, -edge[2:]))


def test_labels_are_given_only_where_the_classes_are_the_models_by_name(program, run_folder, tmp_path):
    """Twelve here, twelve there, but others."""
    rng = np.random.default_rng(0)
    for name in "abcdefghijkl":
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(2):
            image = torch.from_numpy(rng.integers(0, 256, (3, 16, 16), dtype=np.uint8))
            pictures.save_png(tmp_path / "photos" / name / f"{i}.png", image)
    flags = ("--data", tmp_path / "photos", "--split", "all", "-n", 2, "--levels", 1)
    assert measure(program, run_folder, "bpd", *flags)[2]["protocol"]["labels"] == "none"


def test_ode_goes_straight_to_the_picture(program, run_folder):
    """Each level that it stops at costs evaluations, and a figure shows none of them."""
    _, _, report = measure(program, run_folder, "speed", "-n", 1, "--samplers", "ode,ddim", "--steps", "2,4")
    assert set(report["figures"]) == {"ode_1", "ddim_2", "ddim_4"}
    _, _, report = measure(program, run_folder, "fid", "-n", 4, "--features", "random", "--sampler", "ode")
    assert report["protocol"]["steps"] == 1
    painter = Painter.open(run_folder / "best.pth")
    subject = Subject(**vars(painter), group=None, batch_size=4, guidance=1.0, precision="fp32")
    assert (subject.steps(None, "ode"), subject.steps(3, "ode"), subject.steps(None, "ddim")) == (1, 3, 5)


@pytest.mark.parametrize("others", [[], [11]])
def test_the_evaluations_of_a_figure_are_the_most_that_a_picture_took(run_folder, monkeypatch, others):
    """In any batch, and in any process."""
    group = Processes(0, 1 + len(others), torch.device("cpu"))
    costs, drawn = iter((5, 9, 7)), torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
    subject = Subject(
        **vars(Painter.open(run_folder / "best.pth")), group=group, batch_size=1, guidance=1.0, precision="fp32"
    )
    monkeypatch.setattr(Subject, "draw", lambda *_: (drawn, next(costs)))

    def gather(self, mine):
        return [mine, *(([i], torch.zeros(1, 48)) if isinstance(mine, tuple) else n for i, n in enumerate(others))]

    monkeypatch.setattr(Processes, "gather", gather)
    found = subject.draw_features(3 * group.world, lambda x: x.flatten(1).float(), "ode", 3, None, None)
    assert found[1] == max([9, *others])


def test_as_close_as_an_unseen_image_is_not_closer():
    same = torch.zeros(20, dtype=torch.float64)
    assert verdict(same, same)["very_close"] == 0


def test_guidance_is_refused_where_the_model_has_no_classes(program, tmp_path):
    config = override(PRESETS["smoke"], {"model.num_classes": 0})
    weights = UNet(config.model, 3, config.data.size).state_dict()
    checkpoint.save(tmp_path / "plain.pth", config, model=weights, ema=weights, step=1, classes=[])
    argv = ("-n", 1, "--samplers", "ddim", "--steps", 1, "--guidance", 2)
    code, _, err = program("evaluate", "speed", "--ckpt", "plain.pth", *argv)
    assert code == 2 and "--guidance: the model has no classes" in err


@pytest.mark.parametrize("command", evaluate.MEASURES)
def test_what_draws_pictures_can_draw_them_in_half_precision_and_compiled(command):
    found = vars(evaluate.parser().parse_args([command]))
    assert ("precision" in found, "compile" in found) == (command not in ("bpd", "loglik"),) * 2


def test_a_compiled_network_sees_batches_of_one_size(run_folder):
    """Another size would be compiled anew, for minutes."""
    painter, sizes = Painter.open(run_folder / "best.pth"), []
    how = {"group": Processes(0, 1, torch.device("cpu")), "batch_size": 4, "guidance": 1.0, "precision": "fp32"}
    subject = Subject(**vars(painter), **how)
    expected, _ = subject.draw([0, 1], "ddim", 2, 0.0)
    painter.model._orig_mod = "what torch.compile was given"
    painter.model.register_forward_pre_hook(lambda model, inputs: sizes.append(len(inputs[0])))
    found, _ = subject.draw([0, 1], "ddim", 2, 0.0)
    assert sizes == [4, 4] and torch.equal(found, expected)


@pytest.mark.parametrize(
    ("command", "defaults"),
    [
        ("fid", {"n": 2048, "split": "train", "features": "inception", "sampler": "ddim", "steps": None, "eta": None}),
        ("kid", {"n": 2048, "split": "train", "features": "inception", "sampler": "ddim", "steps": None, "eta": None}),
        ("bpd", {"n": 64, "split": "val", "variance": "small", "levels": 100}),
        ("loglik", {"n": 32, "split": "val", "probes": 1, "tol": 1e-3}),
        ("nearest", {"n": 256, "sampler": "ddim", "steps": None, "eta": None}),
        ("speed", {"n": 16, "samplers": tuple(samplers.SAMPLERS), "steps": None}),
        (
            "sweep",
            {"n": 256, "split": "train", "features": "random", "samplers": tuple(samplers.SAMPLERS), "steps": None},
        ),
    ],
)
def test_what_is_measured_when_nothing_is_asked_for(command, defaults):
    args = vars(evaluate.parser().parse_args([command]))
    assert {name: args[name] for name in defaults} == defaults
    assert args.get("batch_size", 16) == 16 and args.get("precision", "fp32") == "fp32"


@pytest.mark.parametrize(
    "command",
    [
        "evaluate speed -n 1 --samplers ddim --steps 3", "generate ddim -n 1 --steps 3", "edit inpaint -n 1 --steps 3",
        "edit img2img -n 1", "explore seeds -n 2 --steps 3", "explore samplers -n 1 --steps 3",
        "explore eta --steps 3", "explore interpolate --levels 20",
    ],
)  # fmt: skip
def test_pictures_that_are_not_finite_are_no_result(program, run_folder, monkeypatch, command):
    monkeypatch.setattr(UNet, "forward", lambda self, x, t, y=None: x * math.nan)
    code, _, err = program(*command.split(), "--ckpt", run_folder)
    expected = f"error: {run_folder}/best.pth: the pictures are not finite; train again with a lower --train.lr\n"
    assert (code, err) == (2, expected)


def test_a_process_may_have_no_picture_to_measure():
    class Two(Processes):
        def gather(self, share):
            return [([0], torch.ones(1)), share]

    subject = SimpleNamespace(group=Two(1, 2, torch.device("cpu")), batch_size=4)
    assert Subject.each(subject, 1, lambda numbers: torch.zeros(len(numbers))).tolist() == [1]


def test_fewer_unseen_images_than_samples_asked_for_are_warned_of(program, run_folder, few):
    _, err, report = measure(program, run_folder, "nearest", "--data", few(8), "-n", 5, "--steps", 1)
    assert err == "warning: only 2 unseen images are there, so 2 samples are drawn\n"
    assert report["protocol"]["compared"] == 2


def test_only_few_pictures_are_warned_of_and_by_one_process(capsys):
    for n, rank, warned in ((2047, 0, True), (2048, 0, False), (2047, 1, False)):
        warn_if_few(SimpleNamespace(group=Processes(rank, 2, torch.device("cpu"))), n)
        assert ("few for a Frechet distance" in capsys.readouterr().err) == warned


def test_features_that_cannot_be_cached_cost_a_warning(tmp_path, monkeypatch, capsys):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "file").touch()
    monkeypatch.setattr(np, "save", full)
    for path, reason in ((tmp_path / "file/f.npy", "File exists"), (tmp_path / "f.npy", "No space left on device")):
        found = cached(path, Processes(0, 1, torch.device("cpu")), lambda: torch.ones(3))
        err = capsys.readouterr().err
        assert found.tolist() == [1, 1, 1] and "not cached" in err and reason in err and err.count("\n") == 1


def test_features_that_one_process_lacks_are_computed_by_all(tmp_path):
    class Two(Processes):
        def gather(self, thing):
            return [thing, False]

    np.save(tmp_path / "f.npy", np.zeros(3))
    found = cached(tmp_path / "f.npy", Two(0, 2, torch.device("cpu")), lambda: torch.ones(3))
    assert found.tolist() == [1, 1, 1]
