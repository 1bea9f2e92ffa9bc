"""EDM's continuous levels and preconditioning against closed forms, and a run of it through the programs."""

import math

import pytest
import torch
from oracles import normal, seeded
from torch.testing import assert_close

import config
from check import check
from diffusion import bound, variants
from diffusion.edm import EDM, MEAN, SIGMA_DATA, STD, level_of, sigma_at
from diffusion.invert import invert
from diffusion.process import GaussianDiffusion
from diffusion.samplers import SAMPLERS, ddim
from diffusion.steps import spaced, spaced_rho
from models.unet import UNet

T = 40
U = torch.tensor([1.0, 1.37, 7.0, 19.5, 33.01, 40.0], dtype=torch.float64)


def sigma(u):
    return sigma_at(u, T).view(-1, 1, 1, 1)


# ---------------------------------------------------------------- levels


def test_the_levels_run_from_sigma_min_to_sigma_max_evenly_in_the_seventh_root():
    s = sigma_at(torch.arange(1, T + 1), T)
    assert_close(s[[0, -1]], torch.tensor([0.002, 80.0], dtype=torch.float64), rtol=1e-13, atol=0)
    assert_close((s ** (1 / 7)).diff(n=2), torch.zeros(T - 2, dtype=torch.float64), rtol=0, atol=1e-13)


def test_by_default_the_data_is_taken_to_have_the_deviation_of_the_paper():
    """At σ = 0.5 half of the noisy picture is picture: c_skip = 1/2 there."""
    c_skip, *_ = EDM(T).coefficients(level_of(torch.tensor([0.5], dtype=torch.float64), T), torch.zeros(1, 1, 1, 1))
    assert c_skip.item() == pytest.approx(0.5, rel=1e-6)


def test_sigma_and_its_inverse_are_a_round_trip():
    u = torch.linspace(1, T, 997, dtype=torch.float64)
    assert_close(level_of(sigma_at(u, T), T), u, rtol=0, atol=1e-11)
    beyond = torch.tensor([1e-9, 1e9], dtype=torch.float64)
    assert level_of(beyond, T).tolist() == [1, T]


def test_whole_levels_are_those_of_the_schedule():
    d, t = EDM(T), torch.arange(1, T + 1)
    ab = d.schedule.alpha_bar
    assert_close(((1 - ab[1:]) / ab[1:]).sqrt(), sigma_at(t, T))
    assert_close(torch.cumprod(1 - d.schedule.betas, 0), ab)
    assert ab[0] == 1 and d.schedule.betas[0] == 0
    x_0, eps = normal(T, 3, 2, 2), normal(T, 3, 2, 2, seed=1)
    assert_close(d.q_sample(x_0, t, eps), GaussianDiffusion(d.schedule).q_sample(x_0, t, eps))
    assert (d.q_sample(x_0, torch.zeros_like(t), eps) == x_0).all()


def test_levels_even_in_t_are_those_of_rho_seven():
    assert spaced_rho(EDM(1000).schedule, 38, 7.0) == torch.linspace(1000, 1, 38).round().int().tolist()


# ---------------------------------------------------------------- what is drawn in training


def test_the_logarithm_of_sigma_is_drawn_with_the_stated_mean_and_deviation():
    torch.manual_seed(0)
    u = EDM(1000).draw_t(200_000, "cpu")
    drawn = sigma_at(u, 1000).log()
    assert drawn.mean().item() == pytest.approx(MEAN, abs=0.01) and drawn.std().item() == pytest.approx(STD, abs=0.01)
    # not their clamped tails alone: a normal distribution holds 68.27 % within one deviation
    assert ((drawn - MEAN).abs() < STD).double().mean().item() == pytest.approx(0.6827, abs=0.005)
    assert (u != u.round()).float().mean() > 0.99


def test_levels_are_drawn_in_float64_with_the_paper_s_mean_and_deviation():
    assert (MEAN, STD) == (-1.2, 1.2) and EDM(T).draw_t(2, "cpu").dtype == torch.float64


@pytest.mark.parametrize("T", [0, 1])
def test_a_single_level_is_refused(T):
    with pytest.raises(ValueError, match="at least 2"):
        EDM(T)
    assert EDM(2).T == 2


def test_training_never_leaves_the_range_of_levels(monkeypatch):
    monkeypatch.setattr(torch, "randn", lambda n, device: torch.linspace(-40, 40, n))
    u = EDM(T).draw_t(1001, "cpu")
    assert u.min() == 1 and u.max() == T and (u.diff() >= 0).all()


def test_the_draw_is_that_of_torchs_global_generator():
    draws = []
    for _ in (1, 2):
        torch.manual_seed(3)
        draws.append(EDM(T).draw_t(5, "cpu"))
    assert_close(*draws, rtol=0, atol=0)


# ---------------------------------------------------------------- preconditioning


def test_with_unit_data_the_network_is_asked_for_minus_v_and_shown_x_t():
    d, t = EDM(T, sigma_data=1.0), torch.arange(1, 7)
    x_0, eps = normal(6, 3, 4, 4), normal(6, 3, 4, 4, seed=1)
    v = GaussianDiffusion(d.schedule, "v")
    assert_close(d.target(x_0, eps, t), -v.target(x_0, eps, t))
    x_t, said = d.q_sample(x_0, t, eps), normal(6, 3, 4, 4, seed=2)
    assert_close(d.to_x0_eps(said, x_t, t), v.to_x0_eps(-said, x_t, t), rtol=1e-9, atol=1e-9)
    assert_close(d.ask(lambda x, t, y: x, x_t, t, None), x_t)


def test_the_target_is_the_paper_s_and_converts_back_to_x0_and_eps():
    d, x_0, eps = EDM(T), normal(6, 3, 4, 4), normal(6, 3, 4, 4, seed=1)
    s, sd = sigma(U), SIGMA_DATA
    x_bar, c_skip, c_out = x_0 + s * eps, sd**2 / (s**2 + sd**2), s * sd / (s**2 + sd**2).sqrt()
    assert_close(d.target(x_0, eps, U), (x_0 - c_skip * x_bar) / c_out, rtol=1e-9, atol=1e-9)
    x_t = d.q_sample(x_0, U, eps)
    assert_close(x_t, x_bar / (1 + s**2).sqrt())
    back = d.to_x0_eps(d.target(x_0, eps, U), x_t, U)
    assert_close(back, (x_0, eps), rtol=1e-9, atol=1e-9)
    any_x0, any_eps = d.to_x0_eps(normal(6, 3, 4, 4, seed=2), x_t, U)
    assert_close((any_x0 + s * any_eps) / (1 + s**2).sqrt(), x_t)  # consistent whatever the network says


def test_input_and_target_have_unit_variance_at_every_level():
    d = EDM(T)
    x_0, eps = SIGMA_DATA * normal(6, 1, 100, 100), normal(6, 1, 100, 100, seed=1)
    seen = d.ask(lambda x, t, y: x, d.q_sample(x_0, U, eps), U, None)
    for z in (seen, d.target(x_0, eps, U)):
        assert_close(z.flatten(1).var(dim=1), torch.ones(6, dtype=torch.float64), rtol=0, atol=0.05)


@pytest.mark.parametrize("t", [1, 2, 20, 40])
def test_for_gaussian_data_a_silent_network_is_perfect(t):
    """F = 0 is E[F | x̄] there, so D is the posterior mean σ_data² / (σ² + σ_data²) x̄."""
    d, x_t = EDM(T), normal(2, 3, 4, 4)
    ab = d.schedule.alpha_bar[t]
    x0, _ = d.denoiser(lambda x, t, y: 0 * x, clip=False)(x_t, t)
    assert_close(x0, ab.sqrt() * SIGMA_DATA**2 / (ab * SIGMA_DATA**2 + 1 - ab) * x_t)


# ---------------------------------------------------------------- the loss


def test_the_loss_is_the_weighted_error_of_the_picture():
    d, x_0, eps = EDM(T), normal(6, 3, 4, 4), normal(6, 3, 4, 4, seed=1)
    s, sd = sigma(U), SIGMA_DATA
    x_bar = x_0 + s * eps
    seen = []

    def network(x, t, y):
        seen.append((x, t, y))
        return x.sin()

    loss = d.loss(network, x_0, "label", t=U, eps=eps)
    c_in = 1 / (s**2 + sd**2).sqrt()
    D = sd**2 * c_in**2 * x_bar + s * sd * c_in * (c_in * x_bar).sin()
    weight = (s**2 + sd**2) / (s * sd) ** 2
    assert_close(loss, (weight * (x_0 - D) ** 2).flatten(1).mean(1), rtol=1e-8, atol=1e-10)
    assert_close(seen[0][0], c_in * x_bar)
    assert seen[0][1] is U and seen[0][2] == "label"


def test_the_loss_draws_real_levels_where_none_are_given():
    seen = []
    torch.manual_seed(0)
    EDM(T).loss(lambda x, t, y: seen.append(t) or x, torch.zeros(500, 1, 2, 2))
    assert seen[0].min() >= 1 and seen[0].max() <= T and (seen[0] != seen[0].round()).all()


def test_the_base_process_draws_as_ever():
    torch.manual_seed(5)
    drawn = GaussianDiffusion(EDM(T).schedule).draw_t(7, "cpu")
    torch.manual_seed(5)
    assert_close(drawn, torch.randint(1, T + 1, (7,)))


def test_the_unet_takes_real_levels_with_and_without_labels():
    small = config.Model(8, (1, 2), 1, attention_resolutions=(), heads=2, dropout=0.0, num_classes=3)
    model = UNet(small).eval()
    for p in model.parameters():
        p.data.normal_(0, 0.1)
    x = torch.randn(2, 3, 8, 8)
    for y in (None, torch.tensor([0, 2])):
        assert_close(model(x, torch.tensor([3.0, 9.0], dtype=torch.float64), y), model(x, torch.tensor([3, 9]), y))
        assert (model(x, torch.tensor([3.5, 9.0]), y)[0] != model(x, torch.tensor([3, 9]), y)[0]).any()


# ---------------------------------------------------------------- sampling


def oracle(d, x_0):
    """The perfect F when the data is the single image x_0."""

    def network(z, t, y):
        u = t.double()
        s = sigma(u)
        x_bar = z * (s**2 + d.sigma_data**2).sqrt()
        return d.target(x_0, (x_bar - x_0) / s, u)

    return network


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("n", [1, 2, 7, 40])
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_point_mass_comes_back_exactly(name, n, clip):
    d, x_0 = EDM(T), normal(1, 3, 4, 5, seed=3).clamp(-1, 1)
    denoise = d.denoiser(oracle(d, x_0), clip=clip)
    walk = SAMPLERS[name](denoise, d.schedule, normal(2, 3, 4, 5), timesteps=spaced(T, n), noise_like=seeded())
    assert_close(list(walk)[-1].x, x_0.expand(2, -1, -1, -1), rtol=0, atol=1e-8)


def test_ddim_is_euler_in_sigma():
    """dx̄/dσ = (x̄ - D(x̄; σ)) / σ, with any network."""
    d, x_T = EDM(T), normal(2, 1, 4, 4)
    denoise, levels = d.denoiser(lambda x, t, y: x.sin(), clip=False), spaced(T, 8)
    s = [*sigma_at(torch.tensor(levels), T).tolist(), 0.0]
    x_bar = x_T * math.sqrt(1 + s[0] ** 2)
    for step, now, then, t in zip(ddim(denoise, d.schedule, x_T, timesteps=levels), s, s[1:], levels):
        D, _ = denoise(x_bar / math.sqrt(1 + now**2), t)
        x_bar = x_bar + (then - now) * (x_bar - D) / now
        assert_close(step.x, x_bar / math.sqrt(1 + then**2))


def test_guidance_and_both_halves_in_one_evaluation_go_through_the_scaling():
    d, x_t, sizes = EDM(T), normal(2, 1, 4, 4), []

    class Network:
        null_class = 5

        def __call__(self, x, t, y):
            sizes.append(len(x))
            return x * y.view(-1, 1, 1, 1)

    x0, _ = d.denoiser(Network(), torch.tensor([1, 2]), guidance=3.0, clip=False)(x_t, 9)
    plain = lambda x, t, y: x * (5 + 3 * (torch.tensor([1, 2]) - 5)).view(-1, 1, 1, 1)  # noqa: E731
    assert_close(x0, d.denoiser(plain, clip=False)(x_t, 9)[0])
    assert sizes == [4]


def test_the_bound_and_the_way_back_up_work_as_they_are():
    d = EDM(T)
    denoise = d.denoiser(lambda x, t, y: 0 * x, clip=False)
    x_0 = (normal(4, 1, 8, 8) * SIGMA_DATA).clamp(-1, 1)
    x_0 = ((x_0 + 1) * 127.5).round() / 127.5 - 1
    terms = bound.bound(denoise, d.schedule, x_0, seeded(), lambda a, b: a, T, "large")
    bits = bound.in_bits(sum(terms), x_0)
    entropy = 0.5 * math.log2(2 * math.pi * math.e * (SIGMA_DATA * 127.5) ** 2)  # of a normal, in grey levels
    assert (bits > entropy - 1).all() and (bits < entropy + 2).all()
    up = list(invert(denoise, d.schedule, x_0, refine=50))[-1].x
    assert_close(list(ddim(denoise, d.schedule, up))[-1].x, x_0, rtol=0, atol=1e-6)


# ---------------------------------------------------------------- through the programs

RUN = ("--preset", "smoke", "--diffusion.process", "edm")


def test_a_run_trains_resumes_bit_for_bit_and_samples(program, whole_equals_halves):
    found = whole_equals_halves(*RUN)
    assert isinstance(variants.from_config(found.diffusion), EDM)
    for argv in (["ddim"], ["ddpm", "--variance", "large"], ["heun", "--label", "zigzag", "--guidance", 2]):
        code, out, err = program("generate", *argv, "-n", 2, "--steps", 3, "--ckpt", "ckpt/whole")
        assert code == 0 and "2 pictures" in out, err
    assert program("evaluate", "bpd", "-n", 2, "--levels", 3, "--ckpt", "ckpt/whole")[0] == 0
    assert program("edit", "invert", "-n", 1, "--steps", 4, "--ckpt", "ckpt/whole")[0] == 0
    assert program("explore", "loss", "--images", 2, "--ckpt", "ckpt/whole/best.pth")[0] == 0


def test_the_trainer_teaches_real_levels_and_validates_on_whole_ones(program, monkeypatch):
    taught, validated, real = [], [], EDM.target

    def target(self, x_0, eps, t):
        (taught if torch.is_grad_enabled() else validated).extend(t.tolist())
        return real(self, x_0, eps, t)

    monkeypatch.setattr(EDM, "target", target)
    assert program("main", *RUN)[0] == 0
    assert len(taught) == 32 and all(u != round(u) and 1 <= u <= 50 for u in taught)
    assert len(validated) == 16 and all(u == round(u) for u in validated)


def test_edm_replaces_what_a_preset_says_and_refuses_what_the_user_says(program):
    found = check(config.override(config.PRESETS["textiles"], {"diffusion.process": "edm", "diffusion.T": 200}))
    assert found.diffusion == config.Diffusion(process="edm", T=200)
    for flag, value in (
        ("prediction", "v"),
        ("schedule", "linear"),
        ("min_snr_gamma", 5),
        ("zero_terminal_snr", "true"),
    ):
        code, _, err = program("main", *RUN, f"--diffusion.{flag}", value)
        assert code == 2 and err.count("\n") == 1 and f"--diffusion.{flag}" in err and "edm" in err
    code, _, err = program("main", *RUN, "--diffusion.T", 1, "--sample.steps", 1)
    assert code == 2 and "--diffusion.T 1: expected at least 2" in err
    code, _, err = program("main", "--preset", "smoke", "--diffusion.process", "emd")
    assert code == 2 and "did you mean edm" in err


def test_a_config_without_the_field_is_the_plain_process():
    saved = config.to_dict(config.PRESETS["textiles"])
    del saved["diffusion"]["process"]
    found = config.from_dict(saved)
    assert found == config.PRESETS["textiles"] and type(variants.from_config(found.diffusion)) is GaussianDiffusion
