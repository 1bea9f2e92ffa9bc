"""How many steps DDIM needs to be as near as another solver, read off its measured curve."""

import pytest
import torch

import cli
from benchmarks import equal_quality
from benchmarks.equal_quality import as_near, main
from diffusion.samplers import ddim
from lessons.lab import Lab


def test_a_power_law_is_read_off_exactly():
    curve = [(n, 8.0 * n**-1.5, 0.1 * n) for n in (10, 20, 40, 80)]
    steps, seconds = as_near(8.0 * 30**-1.5, curve)
    assert steps == pytest.approx(30) and seconds == pytest.approx(3.0)
    assert as_near(curve[1][1], curve) == pytest.approx((20, 2.0))


def test_nothing_is_read_off_beyond_the_measured_points():
    curve = [(10, 4.0, 1.0), (20, 2.0, 2.0)]
    assert as_near(4.1, curve) is None and as_near(1.9, curve) is None


def test_the_table_has_a_row_for_each_solver_and_number_of_steps(capsys):
    main(["--full", "40", "-n", "1", "--ckpt", str(cli.SHIPPED)])
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines() if "|" in line
    ]
    assert {len(row) for row in rows} == {7}
    assert [int(row[1]) for row in rows if row[0] == "dpmpp"] == [10, 15, 20, 25, 30]
    assert all(row[4] == "" for row in rows if row[0].startswith("ddim"))


@pytest.mark.parametrize("full", [10, 1001])
def test_a_full_chain_that_the_checkpoint_does_not_have_or_that_leaves_nothing_to_measure_is_refused(capsys, full):
    assert cli.run(main, ["--full", str(full), "--ckpt", str(cli.SHIPPED)]) == 2
    assert capsys.readouterr().err == f"error: --full {full}: this checkpoint has T = 1000, so 11 to 1000\n"


def test_the_device_asked_for_is_the_one_that_is_used_or_else_refused(monkeypatch, capsys):
    assert cli.run(main, ["--device", "banana"]) == 2
    assert capsys.readouterr().err == "error: --device banana: expected auto, cpu, cuda or cuda:N\n"
    opened = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # though it is there, it is not what was asked for
    monkeypatch.setattr(Lab, "open", lambda path, device, *_: opened.append(device) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["--device", "cpu"])
    assert opened == [torch.device("cpu")]


def test_a_row_says_how_many_steps_ddim_needs_and_how_many_times_as_long_they_take(monkeypatch, capsys):
    def draw(lab, numbers, sampler, levels):
        n, (grey, a_step) = len(levels), (400, 0.1) if sampler is ddim else (80, 0.2)
        return torch.full((1, 3, 2, 2), 0.0 if n == lab.T else grey / n / 127.5), a_step * n

    monkeypatch.setattr(equal_quality, "draw", draw)
    main(["--ckpt", str(cli.SHIPPED)])
    out = capsys.readouterr().out
    assert "| dpmpp | 10 | 8.00 | 2.00 | 50 | 5.00 | 2.5 |\n" in out
    assert "| dpmpp | 20 | 4.00 | 4.00 | 100 | 10.00 | 2.5 |\n" in out
