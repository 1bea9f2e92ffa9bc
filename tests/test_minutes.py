"""benchmarks/minutes.py reads a run's own files."""

import csv
import json

import pytest

from benchmarks import minutes
from config import PRESETS, UserError, override, to_dict


def write(folder, rows):
    """The two files of a run in batches of 4 x 2."""
    folder.mkdir(exist_ok=True)
    config = override(PRESETS["smoke"], {"train.accumulate": 2})
    (folder / "config.json").write_text(json.dumps(to_dict(config)))
    with open(folder / "metrics.csv", "w", newline="") as file:
        table = csv.DictWriter(file, rows[0])
        table.writeheader()
        table.writerows(rows)


def row(step, loss, rate, distance=1.0):
    return {"step": step, "val_loss": loss, "images_per_s": rate, "frechet_distance_random": distance, "mmd2_random": 9}


def test_minutes_are_images_over_the_rate_of_each_stretch(tmp_path, capsys):
    write(tmp_path / "run", [row(30, 0.5, 4.0, 3.0), row(90, 0.25, 2.0, 2.0)])
    name, found = minutes.curve(tmp_path / "run")
    assert name == "frechet_distance_random"
    assert found == [(1.0, 30, 0.5, 3.0), (5.0, 90, 0.25, 2.0)]  # 240 images at 4/s, then 480 at 2/s
    assert minutes.main([str(tmp_path / "run"), "--out", str(tmp_path / "m.png")]) == 0
    assert "| 5.0 | 90 | 0.2500 | 2.000 |" in capsys.readouterr().out and (tmp_path / "m.png").stat().st_size > 1000


def test_evaluations_without_a_distance_take_their_minutes_and_are_left_out(tmp_path):
    write(tmp_path / "run", [row(30, 0.5, 4.0, None), row(90, 0.25, 2.0, 2.0)])
    assert minutes.curve(tmp_path / "run")[1] == [(5.0, 90, 0.25, 2.0)]


def test_an_evaluation_right_after_a_resume_had_no_step_to_time_and_takes_the_rate_of_the_others(tmp_path):
    write(tmp_path / "run", [row(30, 0.5, 4.0), row(60, 0.5, 0.0), row(90, 0.25, 4.0)])
    assert [when for when, *_ in minutes.curve(tmp_path / "run")[1]] == [1.0, 2.0, 3.0]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda run: (run / "metrics.csv").unlink(), "metrics.csv: No such file"),
        (lambda run: (run / "config.json").write_text("{"), "damaged"),
        (lambda run: write(run, [row(4, 1.0, "fast")]), "damaged"),
        (lambda run: write(run, [{"step": 4, "val_loss": 1.0, "images_per_s": 1.0}]), "--train.distance_images"),
        (lambda run: write(run, [row(4, 1.0, 1.0, None), row(8, 1.0, 1.0, None)]), "--train.distance_images"),
        (lambda run: write(run, [row(4, 1.0, 0.0)]), "damaged"),
    ],
)
def test_a_folder_that_is_no_measured_run_is_one_clear_line(tmp_path, damage, said):
    write(tmp_path / "run", [row(4, 1.0, 1.0)])
    damage(tmp_path / "run")
    with pytest.raises(UserError, match=said):
        minutes.curve(tmp_path / "run")


def test_the_distance_is_drawn_above_and_the_validation_loss_below_it_against_minutes(monkeypatch):
    kept = []
    monkeypatch.setattr(minutes.figure, "save_png", lambda file, fig: kept.append(fig))
    minutes.draw({"run": ("frechet_distance_random", [(1.0, 30, 0.5, 3.0), (5.0, 90, 0.25, 2.0)])}, "m.png")
    above, below = kept[0].axes
    assert above.get_position().y0 > below.get_position().y0
    titles = ("Frechet distance of random features", "validation loss")
    for axes, title, values in zip((above, below), titles, ([3.0, 2.0], [0.5, 0.25])):
        (line,) = axes.lines
        assert axes.get_title(loc="left") == title
        assert (list(line.get_xdata()), list(line.get_ydata())) == ([1.0, 5.0], values)
