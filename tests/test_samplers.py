"""Samplers against closed forms: no training, no tolerance to hide behind.

Two data sets have a perfect network that can be written down.  A point mass: every sampler must return the point.
A Gaussian: `ddpm` and `ddim` are affine, so the final mean and standard deviation follow from a recursion.
"""

import itertools
import math

import numpy as np
import pytest
import torch
from oracles import MU, STD, gaussian, last, normal, oracle, seeded
from torch.testing import assert_close

from diffusion.process import PREDICTIONS, GaussianDiffusion, q_posterior
from diffusion.samplers import SAMPLERS, check_eta, ddim, ddpm, dpmpp, heun, ode, pc
from diffusion.schedule import cosine, linear, zero_terminal
from diffusion.steps import adjacent, image_noise, spaced

SCHEDULE = linear(40, 1e-3, 0.3)


# ---------------------------------------------------------------- levels


@pytest.mark.parametrize("T", [1, 2, 7, 50, 1000])
def test_spaced_gives_exactly_n_strictly_falling_levels_from_T(T):
    for n in range(1, T + 1):
        levels = spaced(T, n)
        assert len(levels) == n and levels[0] == T and levels[-1] >= 1
        assert all(a > b for a, b in itertools.pairwise(levels))
        gaps = [a - b for a, b in itertools.pairwise([*levels, 0])]
        assert max(gaps) - min(gaps) <= 1  # as even as whole numbers can be


@pytest.mark.parametrize("n", [0, -1, 51])
def test_spaced_refuses_other_counts(n):
    with pytest.raises(ValueError, match="1 to T = 50"):
        spaced(50, n)


def test_adjacent_pairs_end_at_the_data():
    assert adjacent(SCHEDULE, [40, 7, 2]) == [(40, 7), (7, 2), (2, 0)]
    assert adjacent(SCHEDULE)[0] == (40, 39) and adjacent(SCHEDULE)[-1] == (1, 0) and len(adjacent(SCHEDULE)) == 40


@pytest.mark.parametrize("timesteps", [[], [41, 3], [5, 5], [3, 7], [4, 0], [3, -1]])
@pytest.mark.parametrize("sampler", SAMPLERS.values())
def test_bad_timesteps_are_refused(sampler, timesteps):
    with pytest.raises(ValueError, match="fall strictly"):
        list(sampler(gaussian(SCHEDULE), SCHEDULE, normal(1, 1, 1, 1), timesteps=timesteps))


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("n", [1, 3, 40])
def test_one_step_a_level_and_the_stated_number_of_network_evaluations(name, n):
    calls = []
    perfect = gaussian(SCHEDULE)
    levels = spaced(40, n)
    walk = SAMPLERS[name](lambda x, t: calls.append(t) or perfect(x, t), SCHEDULE, normal(1, 1, 2, 2), timesteps=levels)
    assert [s.t for s in walk] == [*levels[1:], 0]
    twice = [levels[0], *[t for t in levels[1:] for _ in (1, 2)]]  # the end of one step and the start of the next
    if name != "ode":  # it takes as many as it needs
        assert calls == (twice if name in ("heun", "pc") else levels)


# ---------------------------------------------------------------- point mass


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("schedule", [SCHEDULE, cosine(40)], ids=["linear", "cosine"])
@pytest.mark.parametrize("n", [1, 2, 7, 40])
@pytest.mark.parametrize(
    ("sampler", "options"),
    [
        (ddpm, {"variance": "small"}),
        (ddpm, {"variance": "large"}),
        (ddim, {}),
        (ddim, {"eta": 0.5}),
        (ddim, {"eta": 1.0}),
        (dpmpp, {}),
        (heun, {}),
        (pc, {"corrector_steps": 2}),
        (ode, {}),
    ],
)
def test_a_point_mass_comes_back_exactly(sampler, options, n, schedule, prediction):
    diffusion = GaussianDiffusion(schedule, prediction)
    x_0 = normal(1, 3, 4, 5, seed=3).clamp(-1, 1)
    denoise = diffusion.denoiser(oracle(diffusion, x_0))
    out = last(sampler(denoise, schedule, normal(2, 3, 4, 5), timesteps=spaced(40, n), noise_like=seeded(), **options))
    assert out.t == 0
    assert_close(out.x, x_0.expand(2, -1, -1, -1), rtol=0, atol=1e-9)


@pytest.mark.parametrize("sampler", [ddpm, ddim])
def test_with_noise_the_walk_stays_on_the_levels_of_the_point_mass(sampler):
    """Around a point mass, x_s must be N(sqrt(ab_s) x_0, 1 - ab_s): the noise level that the next step expects."""
    diffusion, x_0 = GaussianDiffusion(SCHEDULE), torch.full((1, 1, 1, 1), 0.5, dtype=torch.float64)
    denoise = diffusion.denoiser(oracle(diffusion, x_0))
    options = {"eta": 1.0} if sampler is ddim else {}
    for step in sampler(
        denoise, SCHEDULE, normal(40_000, 1, 1, 1), timesteps=[40, 20, 5], noise_like=seeded(), **options
    ):
        ab = SCHEDULE.alpha_bar[step.t].item()
        assert step.x.mean().item() == pytest.approx(math.sqrt(ab) * 0.5, abs=0.02)
        assert step.x.std().item() == pytest.approx(math.sqrt(1 - ab), abs=0.02)


# ---------------------------------------------------------------- Gaussian data


def final_moments(run):
    """Exact (mean, std) of an affine sampler: response to no noise, and to each unit of noise by itself."""
    zero = torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    one = zero + 1
    draws = itertools.count()
    mean = run(zero, lambda x: (next(draws), zero)[1]).item()
    gains = [run(one, lambda x: zero).item() - mean]
    for k in range(next(draws)):
        order = itertools.count()
        gains.append(run(zero, lambda x, k=k, order=order: one if next(order) == k else zero).item() - mean)
    return mean, math.sqrt(sum(g * g for g in gains))


def by_hand(schedule, levels, eta=None, variance="small"):
    """(mean, std) at level 0 by the recursion for Gaussian data, written out with scalars."""
    mean, var = 0.0, 1.0
    ab = schedule.alpha_bar.tolist()
    for t, s in itertools.pairwise([*levels, 0]):
        k = math.sqrt(ab[t]) * STD**2 / (ab[t] * STD**2 + 1 - ab[t])  # x0_hat = MU + k (x - sqrt(ab_t) MU)
        beta, tilde = 1 - ab[t] / ab[s], (1 - ab[s]) / (1 - ab[t]) * (1 - ab[t] / ab[s])
        if eta is None:  # ancestral
            c0 = math.sqrt(ab[s]) * beta / (1 - ab[t])
            ct = math.sqrt(ab[t] / ab[s]) * (1 - ab[s]) / (1 - ab[t])
            added = (tilde if variance == "small" else beta) if s else 0.0
        else:
            added = eta**2 * tilde
            ct = math.sqrt((1 - ab[s] - added) / (1 - ab[t]))
            c0 = math.sqrt(ab[s]) - ct * math.sqrt(ab[t])
        gain = c0 * k + ct
        mean = c0 * (MU - k * math.sqrt(ab[t]) * MU) + gain * mean
        var = gain**2 * var + added
    return mean, math.sqrt(var)


@pytest.mark.parametrize("n", [1, 2, 10, 40])
@pytest.mark.parametrize("schedule", [SCHEDULE, cosine(40)], ids=["linear", "cosine"])
@pytest.mark.parametrize("options", [{"variance": "small"}, {"variance": "large"}])
def test_ddpm_on_gaussian_data_has_the_exact_moments(n, schedule, options):
    levels = spaced(40, n)
    got = final_moments(
        lambda x, z: last(ddpm(gaussian(schedule), schedule, x, timesteps=levels, noise_like=z, **options)).x
    )
    assert got == pytest.approx(by_hand(schedule, levels, **options), rel=1e-9)


@pytest.mark.parametrize("n", [1, 2, 10, 40])
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_ddim_on_gaussian_data_has_the_exact_moments(n, eta):
    levels = spaced(40, n)
    got = final_moments(
        lambda x, z: last(ddim(gaussian(SCHEDULE), SCHEDULE, x, timesteps=levels, eta=eta, noise_like=z)).x
    )
    assert got == pytest.approx(by_hand(SCHEDULE, levels, eta=eta), rel=1e-9)


@pytest.mark.parametrize("options", [{"eta": 0.0}, {"eta": 1.0}, {"variance": "small"}, {"variance": "large"}])
def test_all_steps_reach_the_data_distribution(options):
    mean, std = by_hand(linear(), spaced(1000, 1000), **options)
    assert mean == pytest.approx(MU, abs=0.005) and std == pytest.approx(STD, rel=0.01)


def test_small_variance_ends_too_narrow_and_large_too_wide_for_few_steps():
    schedule, levels = linear(), spaced(1000, 20)
    small, large = (by_hand(schedule, levels, variance=v)[1] for v in ("small", "large"))
    assert small < STD < large
    small, large = (by_hand(schedule, spaced(1000, 5), variance=v)[1] for v in ("small", "large"))
    assert small < large < STD  # so few that the last step, which draws no noise, decides


def test_ddim_error_halves_when_the_steps_double():
    """Order 1: against the exact probability-flow map of Gaussian data, x -> MU + STD (x - m_T) / s_T."""
    schedule = linear()
    ab = schedule.alpha_bar[1000]
    x = normal(1, 1, 8, 8)
    exact = MU + STD * (x - ab.sqrt() * MU) / (ab * STD**2 + 1 - ab).sqrt()
    errors = [
        (last(ddim(gaussian(schedule), schedule, x, timesteps=spaced(1000, n))).x - exact).abs().max().item()
        for n in (25, 50, 100, 200)
    ]
    orders = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert all(0.8 < o < 1.3 for o in orders), orders


# ---------------------------------------------------------------- relations


@pytest.mark.parametrize("levels", [None, [40, 31, 30, 12, 1]])
def test_ddim_with_eta_one_is_ddpm(levels):
    """Image for image with the same noise, over all steps and over any subset, through clipping."""
    diffusion = GaussianDiffusion(SCHEDULE)
    denoise = diffusion.denoiser(lambda x, t, y: torch.tanh(x) * 0.9)
    x_T = normal(2, 3, 4, 4)
    a = list(ddpm(denoise, SCHEDULE, x_T, timesteps=levels, noise_like=seeded()))
    b = list(ddim(denoise, SCHEDULE, x_T, timesteps=levels, eta=1.0, noise_like=seeded()))
    assert a[0].x0.abs().max() == 1  # the clip was active
    for one, two in zip(a, b):
        assert_close(one.x, two.x)
        assert_close(one.x0, two.x0)


def test_eps_x0_and_v_are_one_trajectory():
    x_0, x_T = normal(1, 3, 4, 4, seed=5) * 0.4, normal(2, 3, 4, 4)
    for sampler in SAMPLERS.values():
        ends = []
        for prediction in PREDICTIONS:
            d = GaussianDiffusion(SCHEDULE, prediction)

            def model(x_t, t, y, d=d):  # an imperfect guess of x_0, spoken in d's language
                ab = SCHEDULE.alpha_bar[t].view(-1, 1, 1, 1)
                guess = 0.5 * x_0 + 0.1 * torch.sin(x_t)
                return d.target(guess, (x_t - ab.sqrt() * guess) / (1 - ab).sqrt(), t)

            ends.append(last(sampler(d.denoiser(model), SCHEDULE, x_T, noise_like=seeded())).x)
        assert_close(ends[0], ends[1])
        assert_close(ends[0], ends[2])


def test_ddim_without_eta_draws_no_noise():
    def forbidden(x):
        raise AssertionError("noise was drawn")

    a, b = (
        last(ddim(gaussian(SCHEDULE), SCHEDULE, normal(1, 1, 2, 2), noise_like=f)).x for f in (forbidden, forbidden)
    )
    assert torch.equal(a, b)


@pytest.mark.parametrize("options", [{"variance": "small"}, {"variance": "large"}])
def test_ddpm_draws_noise_in_every_step_but_the_last(options):
    draws = []
    steps = list(
        ddpm(gaussian(SCHEDULE), SCHEDULE, normal(1, 1, 2, 2), noise_like=lambda x: draws.append(1) or x, **options)
    )
    assert len(draws) == len(steps) - 1
    mean, _ = q_posterior(SCHEDULE, steps[-1].x0, steps[-2].x, 1, 0)
    assert_close(steps[-1].x, mean)


def test_the_largest_eta_is_accepted_and_a_larger_one_refused():
    pairs = adjacent(SCHEDULE, [40, 20, 5])
    ab = SCHEDULE.alpha_bar
    limit = min(math.sqrt((1 - ab[t]) / (1 - ab[t] / ab[s])) for t, s in pairs if s)
    check_eta(SCHEDULE, pairs, limit * 0.9999)
    for eta in (limit * 1.001, -0.1, math.nan):
        with pytest.raises(ValueError, match="eta must be from 0 to"):
            list(ddim(gaussian(SCHEDULE), SCHEDULE, normal(1, 1, 1, 1), timesteps=[40, 20, 5], eta=eta))


def test_over_all_levels_the_last_but_one_step_limits_eta():
    schedule = linear()
    limit = math.sqrt((1 - schedule.alpha_bar[1]) / schedule.posterior_variance(2, 1))
    check_eta(schedule, adjacent(schedule), limit * 0.999)
    with pytest.raises(ValueError, match=f"to {limit:.4g}"):
        check_eta(schedule, adjacent(schedule), limit * 1.01)


def test_the_largest_eta_leaves_no_old_noise_and_no_nan():
    """Rounding makes 1 - alpha_bar - sigma² a little less than 0 there."""
    for T in range(20, 80):
        schedule = linear(T, 0.01, 0.5)
        pairs = adjacent(schedule)
        eta = min(
            ((1 - schedule.alpha_bar[s]) / schedule.posterior_variance(t, s)).sqrt().item() for t, s in pairs if s
        )
        walk = ddim(lambda x, t: (0 * x, x), schedule, torch.ones(1, 1, 1, 1, dtype=torch.float64), eta=eta)
        assert all(torch.isfinite(step.x).all() for step in walk)


def test_a_single_step_has_no_fresh_noise_to_limit_but_eta_stays_within_1():
    check_eta(SCHEDULE, [(40, 0)], 1.0)
    with pytest.raises(ValueError, match="eta must be from 0 to 1 "):
        check_eta(SCHEDULE, [(40, 0)], 1.01)


def test_an_unknown_variance_is_refused():
    with pytest.raises(ValueError, match="'small' or 'large'"):
        list(ddpm(gaussian(SCHEDULE), SCHEDULE, normal(1, 1, 1, 1), variance="medium"))


@pytest.mark.parametrize("sampler", SAMPLERS.values())
def test_samplers_build_no_graph_and_leave_the_callers_grad_mode_alone(sampler):
    weight = torch.ones(1, dtype=torch.float64, requires_grad=True)

    def denoise(x, t):
        assert not torch.is_grad_enabled()
        return x * weight, x * weight

    for step in sampler(denoise, SCHEDULE, normal(1, 1, 2, 2)):
        assert torch.is_grad_enabled()
        assert not step.x.requires_grad
    assert torch.is_grad_enabled()


# ---------------------------------------------------------------- noise of each image


def test_image_noise_depends_on_seed_and_number_only():
    x = torch.empty(3, 2, 4, 4)
    a, b = image_noise(0, [0, 1, 2]), image_noise(0, [2, 0, 7])
    first, second = a(x), b(x)
    assert torch.equal(first[2], second[0]) and torch.equal(first[0], second[1])
    assert torch.equal(a(x)[0], b(x)[1])  # and so on for each later draw
    assert not torch.equal(first, a(x))
    assert not torch.equal(first, image_noise(1, [0, 1, 2])(x))
    assert not torch.equal(first[0], image_noise(2**32, [0])(x[:1])[0])  # all bits of the seed count
    assert not torch.equal(first[1], image_noise(1, [0])(x[:1])[0])  # the next seed is not the next picture


def test_image_noise_is_numpys_generator_of_seed_and_number_in_the_precision_of_the_picture():
    noise_like, generators = image_noise(7, [2, 9]), [np.random.default_rng((7, number)) for number in (2, 9)]
    for dtype in (torch.float32, torch.float64):
        draws = np.stack([g.standard_normal((3, 4, 5), dtype=np.float32) for g in generators])
        found = noise_like(torch.empty(2, 3, 4, 5, dtype=dtype))
        assert found.dtype == dtype and torch.equal(found, torch.from_numpy(draws).to(dtype))


def test_image_noise_is_standard_normal():
    draws = image_noise(0, range(500))(torch.empty(500, 3, 16, 16))
    assert draws.mean().abs() < 0.01 and abs(draws.std().item() - 1) < 0.01


@pytest.mark.parametrize("prediction", ["v", "x0"])
@pytest.mark.parametrize("sampler", SAMPLERS.values())
def test_a_point_mass_comes_back_from_zero_terminal_snr(sampler, prediction):
    schedule = zero_terminal(cosine(40))
    diffusion, x_0 = GaussianDiffusion(schedule, prediction), normal(1, 3, 4, 5, seed=3).clamp(-1, 1)
    denoise = diffusion.denoiser(oracle(diffusion, x_0))
    out = last(sampler(denoise, schedule, normal(2, 3, 4, 5), timesteps=spaced(40, 8), noise_like=seeded()))
    assert_close(out.x, x_0.expand(2, -1, -1, -1), rtol=0, atol=1e-8)
