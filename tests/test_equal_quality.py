"""How many steps DDIM needs to be as near as another solver, read off its measured curve."""

import pytest

from benchmarks.equal_quality import as_near, main
from cli import SHIPPED


def test_a_power_law_is_read_off_exactly():
    curve = [(n, 8.0 * n**-1.5, 0.1 * n) for n in (10, 20, 40, 80)]
    steps, seconds = as_near(8.0 * 30**-1.5, curve)
    assert steps == pytest.approx(30) and seconds == pytest.approx(3.0)
    assert as_near(curve[1][1], curve) == pytest.approx((20, 2.0))


def test_nothing_is_read_off_beyond_the_measured_points():
    curve = [(10, 4.0, 1.0), (20, 2.0, 2.0)]
    assert as_near(4.1, curve) is None and as_near(1.9, curve) is None


def test_the_table_has_a_row_for_each_solver_and_number_of_steps(capsys):
    main(["--full", "40", "-n", "1", "--ckpt", str(SHIPPED)])
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines() if "|" in line
    ]
    assert {len(row) for row in rows} == {7}
    assert [int(row[1]) for row in rows if row[0] == "dpmpp"] == [10, 15, 20, 25, 30]
    assert all(row[4] == "" for row in rows if row[0].startswith("ddim"))
