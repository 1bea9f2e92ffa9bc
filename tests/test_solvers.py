"""Higher-order solvers against exact trajectories.

In one dimension the probability-flow ODE preserves order, so it carries each quantile of p_t to the same quantile of
p_s: for a mixture of two Gaussians, with its network in closed form, the exact answer is a bisection away.
"""

import itertools
import math

import numpy as np
import pytest
import torch
from oracles import gaussian, last, normal, oracle, seeded
from torch.testing import assert_close

from benchmarks.convergence import FINE, MEANS, START, STDS, WEIGHTS, measure, mixture, transport
from diffusion.ode import integrate, log_likelihood, score, velocity
from diffusion.pc import langevin
from diffusion.process import GaussianDiffusion
from diffusion.samplers import SAMPLERS, ddim, ddpm, dpmpp, heun, ode, pc
from diffusion.schedule import Schedule, cosine, linear
from diffusion.steps import _even, counted, spaced, spaced_logsnr, spaced_rho

SCHEDULES = {"linear": linear(), "cosine": cosine(), "fine": FINE}


def no_signal_left():
    """A schedule that ends in pure noise, alpha_bar_T = 0."""
    ab = linear(40, 1e-3, 0.3).alpha_bar.clone()
    ab[-1] = 0
    return Schedule(torch.cat([torch.zeros(1, dtype=torch.float64), 1 - ab[1:] / ab[:-1]]), ab)


def errors(sampler, levels, counts, schedule=FINE):
    return [measure(sampler, levels(schedule, n), schedule)[0] for n in counts]


def orders(found):
    return [math.log2(a / b) for a, b in itertools.pairwise(found)]


# ---------------------------------------------------------------- levels


@pytest.mark.parametrize("schedule", [linear(), cosine(), no_signal_left(), linear(1, 0.999, 0.999)])
@pytest.mark.parametrize("levels", [spaced_logsnr, spaced_rho, lambda s, n: spaced_rho(s, n, 1.0)])
def test_any_n_gives_n_distinct_falling_levels_from_T_to_1(schedule, levels):
    T = schedule.T
    for n in range(1, T + 1) if T < 100 else [1, 2, 3, 10, 25, 50, 99, 250, 500, 750, 998, 999, 1000]:
        found = levels(schedule, n)
        assert len(found) == n and found[0] == T and all(isinstance(t, int) for t in found)
        assert all(a > b for a, b in itertools.pairwise(found)) and found[-1] == (1 if n > 1 else T)
    for n in (0, T + 1):
        with pytest.raises(ValueError, match="1 to T"):
            levels(schedule, n)


@pytest.mark.parametrize("rho", [1.0, 3.0, 7.0])
def test_rho_spacing_is_the_formula_of_edm(rho):
    sigma = (FINE.snr**-0.5).clamp(max=80)
    a, b = sigma[-1] ** (1 / rho), sigma[1] ** (1 / rho)
    ramp = torch.lerp(a, b, torch.linspace(0, 1, 12, dtype=torch.float64)) ** rho
    found = spaced_rho(FINE, 12, rho)
    for t, wanted in zip(found[1:], ramp[1:]):  # the first is T
        nearest = (sigma[1:] ** (1 / rho) - wanted ** (1 / rho)).abs().argmin().item() + 1
        assert abs(t - nearest) <= 2  # rounding of one level moves the shares of the next a little
    with pytest.raises(ValueError, match="rho must be at least 1"):
        spaced_rho(FINE, 12, 0.5)


def test_a_last_level_without_signal_leaves_the_others_even():
    for levels in (spaced_logsnr, spaced_rho):
        assert 30 < levels(no_signal_left(), 10)[1] < 40


def test_logsnr_spacing_is_even():
    steps = np.diff(FINE.snr.clamp(min=80**-2).log()[spaced_logsnr(FINE, 10)])
    assert steps.min() > 0 and steps.max() / steps.min() < 1.1


def test_the_capped_end_of_the_cosine_costs_one_step():
    """Its last forward step spans a quarter of all log-SNR; levels bunched up at T would be spent on nothing."""
    steps = np.diff(cosine().snr.log()[spaced_logsnr(cosine(), 25)])
    assert steps[0] > 0.2 * steps.sum() and steps[1:].max() / steps[1:].min() < 2.5


@pytest.mark.parametrize(
    ("levels", "unlimited"),
    [(spaced_logsnr, lambda s: s.snr.log()), (spaced_rho, lambda s: s.snr ** (-0.5 / 7))],
    ids=["logsnr", "rho"],
)
@pytest.mark.parametrize("make", [cosine, lambda: linear(4000)], ids=["cosine", "linear, T = 4000"])
def test_no_levels_are_spent_where_next_to_nothing_is_left_of_the_picture(make, levels, unlimited):
    """sigma beyond 80: a third of all log-SNR on either schedule, and not worth a tenth of the steps."""
    schedule = make()
    log_snr = schedule.snr.log()
    assert (-2 * math.log(80) - log_snr[-1]) / (log_snr[1] - log_snr[-1]) > 1 / 3
    assert all(log_snr[t] > -2 * math.log(80) for t in levels(schedule, 10)[1:])
    for sampler in (dpmpp, heun):
        all_the_way = _even(unlimited(schedule), 12, None)
        (error, _), (before, _) = (measure(sampler, some, schedule) for some in (levels(schedule, 12), all_the_way))
        assert error < 0.7 * before


# ---------------------------------------------------------------- order of convergence


def test_ddim_is_first_order():
    found = orders(errors(ddim, spaced_logsnr, (32, 64, 128, 256)))
    assert all(0.6 < o < 1.3 for o in found) and 0.8 < sum(found) / len(found) < 1.1, found


@pytest.mark.parametrize(
    ("sampler", "levels"),
    [(dpmpp, spaced_logsnr), (dpmpp, spaced_rho), (heun, spaced_rho), (heun, spaced_logsnr)],
)
def test_dpmpp_and_heun_are_second_order(sampler, levels):
    found = orders(errors(sampler, levels, (32, 64, 128)))
    assert all(1.8 < o < 2.3 for o in found), found


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize(("sampler", "levels"), [(dpmpp, spaced_logsnr), (heun, spaced_rho)])
def test_second_order_beats_first_order_on_both_schedules(sampler, levels, schedule):
    """With 64 steps by a factor of ten, through the cosine's singular end."""
    ours, ddims = (errors(s, levels, [64], SCHEDULES[schedule])[0] for s in (sampler, ddim))
    assert ours < ddims / 10


@pytest.mark.parametrize("sampler", [dpmpp, heun])
def test_gaussian_data_is_carried_along_its_exact_map(sampler):
    ab, (mean, std) = FINE.alpha_bar[-1], (0.3, 0.5)
    exact = mean + std * (START - ab.sqrt() * mean) / (ab * std**2 + 1 - ab).sqrt()
    levels = spaced_logsnr(FINE, 200)
    x = last(sampler(gaussian(FINE), FINE, START, timesteps=levels)).x
    assert_close(x, exact, rtol=0, atol=5e-4)
    assert (last(ddim(gaussian(FINE), FINE, START, timesteps=levels)).x - exact).abs().max() > 2e-3


def test_the_ode_keeps_to_its_tolerance_and_takes_fewer_evaluations_where_it_may():
    found = [measure(ode, [FINE.T, 1], tol=tol) for tol in (1e-2, 1e-3, 1e-4, 1e-5)]
    assert all(error < tol for (error, _), tol in zip(found, (1e-2, 1e-3, 1e-4, 1e-5)))
    for (error, calls), (finer_error, more_calls) in itertools.pairwise(found):
        assert finer_error < error / 3 and calls < more_calls < 300


def test_bogacki_shampine_is_third_order():
    """x' = u x: steps of fixed length, by a tolerance that accepts everything, against exp(u²/2)."""
    x = torch.ones(1, 1, dtype=torch.float64)
    found = []
    for n in (8, 16, 32):
        y = x
        for i in range(n):
            y, _ = integrate(lambda x, u: u * x, y, i / n, (i + 1) / n, tol=1e9)
        found.append(abs(y.item() - math.exp(0.5)))
    assert all(2.9 < o < 3.1 for o in orders(found))
    there, slope = integrate(lambda x, u: u * x, x, 0.0, 1.0, tol=1e-8)
    assert there.item() == pytest.approx(math.exp(0.5), abs=1e-6)
    assert slope == there  # u x at u = 1
    assert integrate(lambda x, u: u * x, there, 1.0, 0.0, tol=1e-8)[0].item() == pytest.approx(1, abs=1e-6)


def places(f, tol):
    """Where the solver looks at f(u) on its way from 0 to 1."""
    seen = []
    integrate(lambda x, u: seen.append(u) or x * 0 + f(u), torch.zeros(1, 1, dtype=torch.float64), 0.0, 1.0, tol)
    return seen


def test_a_step_is_accepted_by_its_distance_to_the_second_order_and_the_next_aims_a_little_below_tol():
    """x' = u²: the third order says 1/3, which is right, the embedded second order 3/8: the estimate is 1/24."""
    assert places(lambda u: u**2, 1.001 / 24) == [0, 0.5, 0.75, 1]
    rejected = places(lambda u: u**2, 0.999 / 24)
    h = 0.9 * 0.999 ** (1 / 3)
    assert rejected[:7] == pytest.approx([0, 0.5, 0.75, 1, h / 2, 3 * h / 4, h])
    assert rejected[7:] == pytest.approx([h + (1 - h) / 2, h + 3 * (1 - h) / 4, 1])  # the rest of the way, and no more


def test_steps_shrink_and_grow_by_no_more_than_a_factor_of_5():
    """A wall at 0.18: steps of 1 and 1/5 meet it, one of 1/25 does not; the next may be 1/5 again."""
    seen = places(lambda u: 1e9 * (u > 0.18), 1e-3)
    assert seen[:13] == pytest.approx([0, 0.5, 0.75, 1, 0.1, 0.15, 0.2, 0.02, 0.03, 0.04, 0.14, 0.19, 0.24])


def test_the_ode_goes_on_from_a_stop_with_the_slope_that_it_came_with():
    """Each stop costs the guess there, and no slope that is known already."""
    denoise, calls = counted(mixture(FINE))
    last(ode(denoise, FINE, START, timesteps=[FINE.T, 600, 300, 1], tol=1e9))
    # the first slope; three stretches of one step, with two slopes between levels (two evaluations each), one at the
    # end and the guess there; and the picture
    assert len(calls) == 1 + 3 * (2 * 2 + 1 + 1) + 1


def test_an_ode_that_explodes_ends():
    x = torch.ones(1, 1, dtype=torch.float64)
    assert not integrate(lambda x, u: x * math.nan, x, 0.0, 1.0, tol=1e-3)[0].isfinite().any()


# ---------------------------------------------------------------- relations


def test_one_step_of_dpmpp_is_ddim_and_the_second_is_not():
    x, levels = normal(2, 1, 3, 3), [1000, 600, 300, 50]
    one, two = (list(s(mixture(linear()), linear(), x, timesteps=levels)) for s in (dpmpp, ddim))
    assert_close(one[0].x, two[0].x)
    assert (one[1].x - two[1].x).abs().max() > 1e-3


def test_dpmpp_is_the_update_of_the_paper_step_by_step():
    """λ is half the log-SNR: another measure of the level would be of second order too, and another method."""
    schedule, levels, x, past = linear(), [1000, 600, 300, 50, 1], START, None
    signal, noise, half = schedule.alpha_bar.sqrt(), (1 - schedule.alpha_bar).sqrt(), schedule.snr.log() / 2
    walk = dpmpp(mixture(schedule), schedule, x, timesteps=levels)
    for step, (t, s) in zip(walk, itertools.pairwise([*levels, 0]), strict=True):
        expected = guess = mixture(schedule)(x, t)[0]  # of the last step, to 0, at once
        if s > 0:
            h = half[s] - half[t]
            moved = guess if past is None else guess + h / (2 * past[1]) * (guess - past[0])
            expected, past = noise[s] / noise[t] * x - signal[s] * torch.expm1(-h) * moved, (guess, h)
        assert_close(step.x, expected)
        x = step.x


@pytest.mark.parametrize("sampler", [dpmpp, heun])
def test_a_guess_that_never_changes_makes_every_order_the_same(sampler):
    """If x0_hat is constant, DDIM is exact, so nothing is left for a higher order to add."""
    schedule, guess = SCHEDULES["cosine"], normal(1, 1, 2, 2, seed=4)

    def denoise(x, t):
        ab = schedule.alpha_bar[t]
        return guess, (x - ab.sqrt() * guess) / (1 - ab).sqrt()

    levels, x = spaced(1000, 9), normal(1, 1, 2, 2)
    for a, b in zip(*(s(denoise, schedule, x, timesteps=levels) for s in (sampler, ddim))):
        assert_close(a.x, b.x, rtol=0, atol=1e-9)


@pytest.mark.parametrize("corrector", [{"corrector_steps": 0}, {"snr": 0}])
def test_pc_without_corrector_or_with_steps_of_no_length_is_ddpm_with_the_large_variance(corrector):
    x, levels = normal(2, 1, 3, 3), [1000, 600, 300, 50]
    noise = normal(2, 1, 3, 3)
    options = {"timesteps": levels, "noise_like": lambda x: noise}  # in the corrector, too
    a = list(pc(mixture(linear()), linear(), x, **corrector, **options))
    b = list(ddpm(mixture(linear()), linear(), x, variance="large", **options))
    for one, two in zip(a, b):
        assert_close(one.x, two.x)


@pytest.mark.parametrize("name", ["dpmpp", "heun", "pc", "ode"])
@pytest.mark.parametrize("n", [1, 2, 5, 40])
def test_a_point_mass_comes_back_from_a_schedule_that_ends_in_pure_noise(name, n):
    schedule, x_0 = no_signal_left(), normal(1, 3, 4, 4, seed=3).clamp(-1, 1)
    diffusion = GaussianDiffusion(schedule, "v")
    levels = spaced_logsnr(schedule, n)
    walk = SAMPLERS[name](
        diffusion.denoiser(oracle(diffusion, x_0)), schedule, normal(2, 3, 4, 4), timesteps=levels, noise_like=seeded()
    )
    assert_close(last(walk).x, x_0.expand(2, -1, -1, -1), rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["dpmpp", "heun", "ode"])
def test_the_deterministic_solvers_draw_no_noise(name):
    def forbidden(x):
        raise AssertionError("noise was drawn")

    last(SAMPLERS[name](mixture(linear()), linear(), START, timesteps=[1000, 500, 2], noise_like=forbidden))


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_picture_that_a_step_shows_is_a_guess_of_the_network_itself(name):
    """Not what the solver makes of several: a strip shows what the network thinks."""
    guesses, perfect = [], mixture(linear())

    def denoise(x, t):
        guesses.append(perfect(x, t))
        return guesses[-1]

    for step in SAMPLERS[name](denoise, linear(), START, timesteps=[1000, 700, 400, 90], noise_like=torch.zeros_like):
        assert any(torch.equal(step.x0, x0) for x0, _ in guesses)


@pytest.mark.parametrize(("schedule", "evaluations"), [("linear", 2 * 20 - 1), ("cosine", 2 * 20 - 2)])
def test_heun_looks_twice_but_in_the_last_step_and_where_there_is_no_signal(schedule, evaluations):
    schedule, calls = SCHEDULES[schedule], []
    perfect = mixture(schedule)
    last(heun(lambda x, t: calls.append(t) or perfect(x, t), schedule, START, timesteps=spaced_rho(schedule, 20)))
    assert len(calls) == evaluations


def test_heun_survives_few_steps_even_in_t_on_the_cosine_schedule():
    """sigma at T is in the thousands; a second look there once multiplied the error of a slope by as much."""
    assert errors(heun, lambda s, n: spaced(s.T, n), [12], SCHEDULES["cosine"])[0] < 0.02


def test_a_tolerance_of_nothing_is_refused():
    with pytest.raises(ValueError, match="tol must be positive"):
        list(ode(mixture(FINE), FINE, START, tol=0.0))


# ---------------------------------------------------------------- predictor-corrector


def test_langevin_at_rest_is_the_level_a_little_too_wide():
    """From far too wide a start, on one level of Gaussian data: variance (1 + alpha r²) times that of the level."""
    schedule, t, r, draw = linear(), 400, 0.3, seeded()
    ab = schedule.alpha_bar[t]
    x = 3 * normal(8, 1, 64, 64)
    for _ in range(120):
        x = langevin(gaussian(schedule), schedule, x, t, r, draw(x))
    variance = (ab * 0.25 + 1 - ab) * (1 + (1 - schedule.betas[t]) * r**2)
    assert x.mean().item() == pytest.approx(ab.sqrt().item() * 0.3, abs=0.02)
    assert x.std().item() == pytest.approx(variance.sqrt().item(), rel=0.01)


def test_the_step_of_langevin_is_as_long_as_the_paper_says():
    schedule, t, z = linear(), 400, normal(2, 1, 8, 8, seed=5)
    x = normal(2, 1, 8, 8) * torch.tensor([1.0, 5.0]).view(2, 1, 1, 1)
    g = score(schedule, gaussian(schedule)(x, t)[1], t)
    for i in range(2):  # each image by its own norms
        step = 2 * (1 - schedule.betas[t]) * (0.16 * z[i].norm() / g[i].norm()) ** 2
        expected = x[i] + step * g[i] + (2 * step).sqrt() * z[i]
        assert_close(langevin(gaussian(schedule), schedule, x, t, 0.16, z)[i], expected)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_pc_has_the_marginals_of_gaussian_data(schedule):
    schedule = SCHEDULES[schedule]
    levels = spaced(1000, 100)
    for step in pc(gaussian(schedule), schedule, normal(4, 1, 64, 64), timesteps=levels, noise_like=seeded()):
        ab = schedule.alpha_bar[step.t].item()
        assert step.x.mean().item() == pytest.approx(math.sqrt(ab) * 0.3, abs=0.02)
        assert step.x.std().item() == pytest.approx(math.sqrt(ab * 0.25 + 1 - ab), rel=0.03)


@pytest.mark.parametrize("levels", [[FINE.T], [FINE.T, 1000], [FINE.T, 1]])
def test_wherever_it_stopped_the_ode_ends_in_the_guess_at_level_1_of_the_exact_path(levels):
    exact, _ = mixture(FINE)(transport(FINE, START, FINE.T, 1), 1)
    found = last(ode(mixture(FINE), FINE, START, timesteps=levels, tol=1e-4)).x
    assert_close(found, exact, rtol=0, atol=1e-3)


@pytest.mark.parametrize("stops", [[50], [50, 20], [50, 1]])
def test_the_picture_of_the_ode_is_the_guess_at_level_1(stops):
    """Below level 1 there is no network; on the way there it is asked at both neighbours of a place between levels."""
    denoise, calls = counted(mixture(linear(50, 1e-3, 0.3)))
    last(ode(denoise, linear(50, 1e-3, 0.3), START, timesteps=stops))
    assert calls[0] == 50 and calls[-1] == 1 and min(calls) == 1


def test_the_corrector_repairs_what_the_predictor_got_wrong():
    """With the large variance five steps are too wide before the last; sixty Langevin steps a level bring them back."""
    wrong = []
    for k in (0, 60):
        x = normal(4, 1, 64, 64)
        walk = pc(gaussian(linear()), linear(), x, timesteps=spaced(1000, 5), corrector_steps=k, noise_like=seeded())
        *_, step, _ = walk
        ab = linear().alpha_bar[step.t].item()
        wrong.append(abs(step.x.std().item() - math.sqrt(ab * 0.25 + 1 - ab)))
    assert wrong[1] < wrong[0] / 4


@pytest.mark.parametrize("options", [{"snr": 1.0}, {"snr": -0.1}, {"snr": math.nan}, {"corrector_steps": -1}])
def test_pc_refuses_what_would_not_settle(options):
    with pytest.raises(ValueError, match="snr must be"):
        list(pc(mixture(linear()), linear(), START, **options))


# ---------------------------------------------------------------- the SDE view


def test_the_score_is_the_slope_of_the_log_density():
    schedule, t = linear(), 300
    ab = schedule.alpha_bar[t]
    x = START.clone().requires_grad_()
    stds = (ab * STDS**2 + 1 - ab).sqrt()
    z = (x[..., None] - ab.sqrt() * MEANS) / stds
    log_p = torch.logsumexp(WEIGHTS.log() - stds.log() - z**2 / 2, -1)
    (slope,) = torch.autograd.grad(log_p.sum(), x)
    assert_close(score(schedule, mixture(schedule)(START, t)[1], t), slope)


def test_the_velocity_is_the_probability_flow_ode_in_the_angle():
    """dx/dφ of the exact flow, by a central difference of the quantile map around one level."""
    schedule, t = FINE, 1500
    phi = torch.atan2((1 - schedule.alpha_bar).sqrt(), schedule.alpha_bar.sqrt())
    ahead, behind = (transport(schedule, START, t, t + d) for d in (20, -20))
    slope = (ahead - behind) / (phi[t + 20] - phi[t - 20])
    assert_close(velocity(mixture(schedule), schedule)(START, phi[t].item()), slope, rtol=0, atol=1e-4)


def test_between_two_levels_the_guess_of_the_velocity_is_interpolated_in_the_angle():
    """A network that guesses the angle itself: φ in between, φ_1 below level 1; one evaluation on a whole level."""
    schedule, x, calls = linear(40, 1e-3, 0.3), normal(1, 1, 2, 2), []
    phis = torch.atan2((1 - schedule.alpha_bar).sqrt(), schedule.alpha_bar.sqrt())
    v = velocity(lambda x, t: (calls.append(t) or torch.full_like(x, phis[t].item()), None), schedule)
    for level in (0.5, 1, 1.04, 7, 23.6, 39.5, 40):
        low = int(level)
        phi = torch.lerp(phis[low], phis[min(low + 1, 40)], level - low).item()
        x_0 = max(phi, phis[1].item())
        expected = math.cos(phi) * (x - math.cos(phi) * x_0) / math.sin(phi) - math.sin(phi) * x_0
        assert_close(v(x, phi), expected)
        assert calls == ([low, low + 1] if level > max(low, 1) else [max(low, 1)])
        calls.clear()


def test_the_likelihood_of_a_silent_network_is_that_of_noise_scaled_from_the_last_level_to_the_first():
    """x̂_0 = 0 makes dx/dφ = x cot φ, so that x grows with sin φ, and p_1 is N(0, (sin φ_1 / sin φ_T)²)."""
    schedule, x = linear(40, 1e-3, 0.3), 0.05 * normal(3, 1, 2, 2)
    noise = (1 - schedule.alpha_bar).sqrt()
    grown = noise[-1] / noise[1]
    exact = -((grown * x).square() + math.log(2 * math.pi)).flatten(1).sum(1) / 2 + 4 * grown.log()
    found = log_likelihood(lambda x, t: (0 * x, x), schedule, x, tol=1e-8)
    assert_close(found, exact, rtol=0, atol=1e-6)


def test_the_likelihood_of_the_mixture_is_exact():
    """Against the closed form at level 1, in one dimension and, by independence, in three."""
    schedule = cosine(4000)  # whose p_T is N(0, 1) to four digits
    x = torch.linspace(-1.2, 1.2, 9, dtype=torch.float64)
    ab = schedule.alpha_bar[1]
    stds = (ab * STDS**2 + 1 - ab).sqrt()
    z = (x[:, None] - ab.sqrt() * MEANS) / stds
    log_p = torch.logsumexp(WEIGHTS.log() - stds.log() - z**2 / 2, -1) - math.log(2 * math.pi) / 2
    assert_close(log_likelihood(mixture(schedule), schedule, x.view(9, 1, 1, 1), tol=1e-6), log_p, rtol=0, atol=1e-3)
    three = torch.stack([x, x.flip(0), x.roll(1)], 1)
    expected = log_p + log_p.flip(0) + log_p.roll(1)
    assert_close(
        log_likelihood(mixture(schedule), schedule, three.view(9, 1, 1, 3), tol=1e-6), expected, rtol=0, atol=3e-3
    )


def test_hutchinsons_estimate_is_exact_for_signs_when_pixels_are_independent():
    """The Jacobian is then diagonal, and z_i² = 1 leaves no error; that is also why the estimate is unbiased."""
    x = 0.5 * normal(3, 1, 4, 4)
    exact = log_likelihood(mixture(linear()), linear(), x)
    assert_close(log_likelihood(mixture(linear()), linear(), x, probe=normal(3, 1, 4, 4).sign()), exact)
    assert not torch.is_grad_enabled() or not exact.requires_grad


def test_an_ode_that_stands_still_is_solved():
    x, slope = integrate(lambda x, u: torch.zeros_like(x), torch.ones(2, 3), 0.0, 1.0, 1e-3)
    assert torch.equal(x, torch.ones(2, 3)) and not slope.any()


def test_one_guess_for_all_pictures_gives_each_of_them_one():
    *_, end = ode(lambda x, t: (torch.zeros(1, 1, 1, 1), x), FINE, torch.ones(3, 1, 2, 2), timesteps=[FINE.T])
    assert end.x.shape == (3, 1, 2, 2)
