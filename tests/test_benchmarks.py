"""The benchmarks are programs like the others: a mistake is one line, and found before the work."""

import json
from concurrent.futures.process import BrokenProcessPool
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

import cli
from benchmarks import compare, convergence, faults, kill, scale


def refused(main, capsys, flags, words):
    assert cli.run(main, [*map(str, flags)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1 and words in err, err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--json", "nodir/x.json"], "cannot write --json nodir/x.json: No such file or directory"),
        (["--json", "."], "Is a directory"),
        (["--rounds", "-1"], "--rounds: '-1' is not a whole number of at least 1"),
        (["--rounds", "0"], "of at least 1"),
        (["--steps", "0"], "of at least 1"),
        (["--images", "0"], "of at least 1"),
        (["--batch", "8"], "of at least 16"),
        (["--device", "banana"], "--device banana: expected auto, cpu, cuda or cuda:N"),
        (["--qui"], "did you mean --quick?"),
    ],
)
def test_compare_refuses_before_the_work(tmp_path, monkeypatch, capsys, flags, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(compare, "compare", lambda args: pytest.fail("it began"))
    refused(compare.main, capsys, flags, words)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("error", "fits"),
    [(MemoryError(), False), (BrokenProcessPool(), False), (RuntimeError("CUDA out of memory"), False), (None, True)],
)
def test_scale_leaves_out_what_does_not_fit(monkeypatch, error, fits):
    def apart(work):
        if error:
            raise error
        return {"seconds": 1}

    monkeypatch.setattr(scale, "apart", apart)
    assert scale.ask() == ({"seconds": 1} if fits else None)


def test_scale_does_not_take_a_fault_for_a_lack_of_memory(monkeypatch):
    monkeypatch.setattr(scale, "apart", lambda work: torch.zeros(2) @ torch.zeros(3))
    with pytest.raises(RuntimeError):
        scale.ask()


def test_compare_refuses_a_second_gpu(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    refused(compare.main, capsys, ["--device", "cuda:1"], "--device cuda:1: the peers take the first GPU")


@pytest.mark.parametrize(
    ("program", "work", "flags", "words"),
    [
        (scale, "ask", ["--plot", "nodir/x.png"], "cannot write --plot nodir/x.png: No such file or directory"),
        (scale, "ask", ["--plot", "x.docx"], "--plot x.docx: expected a name that ends in .png or .pdf or .svg"),
        (scale, "ask", ["--device", "banana"], "--device banana: expected auto, cpu, cuda or cuda:N"),
        (scale, "ask", ["--only", "nothing"], "--only nothing: no table"),
        (scale, "ask", ["--est"], "did you mean --estimate?"),
        (convergence, "measure", ["--out", "nodir/x.png"], "cannot write --out nodir/x.png"),
        (convergence, "measure", ["--out", "x.docx"], "ends in .png or .pdf or .svg"),
        (kill, "torment", ["--kills", "0"], "of at least 1"),
        (kill, "torment", ["--kill", "9"], "did you mean --kills?"),
        (faults, "first_red", ["nothing"], "no fault has nothing in its name or file"),
    ],
)
def test_the_others_refuse_before_the_work(tmp_path, monkeypatch, capsys, program, work, flags, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(program, work, lambda *_, **__: pytest.fail("it began"))
    refused(program.main, capsys, flags, words)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("found", "code"),
    [
        ({}, 0), ({"kills survived": 2}, 1), ({"differences": [".rows"]}, 1), ({"temp files left": ["last.pth"]}, 1),
        ({"steps doubled or missing in metrics.csv": 1}, 1), ({"checkpoints lost": 1}, 1),
    ],
)  # fmt: skip
def test_kill_fails_where_anything_was_lost_or_not_all_kills_came(monkeypatch, found, code):
    whole = {
        "kills survived": 3,
        "differences": [],
        "steps doubled or missing in metrics.csv": 0,
        "temp files left": [],
    }
    monkeypatch.setattr(kill, "torment", lambda *_: {**whole, "checkpoints lost": 0, **found})
    assert kill.main(["--kills", "3"]) == code


def test_compare_says_which_versions_it_measured(tmp_path, monkeypatch, capsys):
    contestant = {"parameters": 1e6, "train_flops": 1e9, "sample_flops": 1e9, "peak_memory_gib": 1.0}
    contestant |= {"train_images_per_s": 1.0, "train_flops_per_s": 1e9, "sample_images_per_s": 1.0}
    contestant["rounds"] = {what: [{"images_per_s": 1.0, "images_per_cpu_s": 1.0}] for what in ("train", "sample")}
    field = {"ours": contestant, "numpy": contestant, "of a folder": contestant}  # as if the second were a peer
    monkeypatch.setattr(compare, "compare", lambda args: ({"net": field}, [1.0, 1.0]))
    compare.main(["--json", str(tmp_path / "x.json")])
    said = f"torch {torch.__version__}, numpy {np.__version__}, of a folder (version unknown); peak: "
    assert said in capsys.readouterr().out
    about = json.loads((tmp_path / "x.json").read_text())["about"]
    assert about["peers"] == {"numpy": np.__version__, "of a folder": "(version unknown)"}


def test_the_table_of_compare_is_shown_even_if_the_file_can_no_longer_be_written(tmp_path, monkeypatch, capsys):
    def measured(args):
        (tmp_path / "gone").rmdir()
        return {}, [1.0, 1.0]

    (tmp_path / "gone").mkdir()
    monkeypatch.setattr(compare, "compare", measured)
    assert cli.run(compare.main, ["--json", str(tmp_path / "gone" / "x.json")]) == 2
    out, err = capsys.readouterr()
    assert "| network | contestant |" in out and "x.json: No such file" in err


def test_a_file_that_can_be_written_is_left_as_it_was(tmp_path):
    (tmp_path / "old.json").write_text("old")
    for name in ("old.json", "new.json"):
        cli.writable("--json", tmp_path / name)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("old.json", "old")]


def test_ratios_are_to_the_best_peer_by_images_and_to_the_best_by_flops_round_by_round():
    def contestant(rates, flops):
        rounds = [{"images_per_s": rate, "images_per_cpu_s": rate / 2} for rate in rates]
        return {"rounds": {"train": rounds, "sample": rounds}, "train_flops": flops, "sample_flops": flops}

    results = {"net": {"ours": contestant([8, 80], 40), "small": contestant([10, 100], 20)}}
    results["net"]["same"] = contestant([6.4, 64], 40)
    assert compare.ratios(results).splitlines()[0] == (
        "net, train, by the clock: 0.80 times the images/s of small, 1.25 times the FLOP/s of same"
    )
    assert compare.ratios({"net": {"ours": contestant([1], 1)}}) == ""


@pytest.mark.parametrize("fault", faults.FAULTS, ids=lambda fault: fault[0])
def test_the_place_of_every_planted_fault_is_there_once(fault):
    _, file, right, wrong, tests = fault
    assert (faults.ROOT / file).read_text().count(right) == 1 and wrong != right
    assert all((faults.ROOT / test).is_file() for test in tests.split())


def test_the_table_of_compare_holds_the_medians_of_what_its_columns_say():
    def rounds(*rates):
        return [{"images_per_s": r, "images_per_cpu_s": r / 4, "peak_memory_gib": r} for r in rates]

    about = {"parameters": 2e6, "train_flops": 3e9, "sample_flops": 5e9}
    one = SimpleNamespace(about=about, rounds={"train": rounds(4, 1, 2), "sample": rounds(70, 90, 80)})
    row = compare.table({"net": {"ours": compare.summary(one)}}, [10e9, 12e9]).splitlines()[-1]
    assert row == "| net | ours | 2.0M | 3.0 | 2 | 6 | 50% | 80 | 2.0 GiB |"


def test_every_ratio_is_of_its_own_quantity():
    def contestant(train, sample, flops):
        rounds = {
            what: [dict(zip(("images_per_s", "images_per_cpu_s"), rates))]
            for what, rates in (("train", train), ("sample", sample))
        }
        return {"rounds": rounds, "train_flops": flops[0], "sample_flops": flops[1]}

    field = {"ours": contestant((8, 2), (3, 5), (40, 10)), "peer": contestant((4, 4), (6, 1), (20, 20))}
    said = [[float(w) for w in line.split() if w[0].isdigit()] for line in compare.ratios({"net": field}).splitlines()]
    assert said == [[2, 4], [0.5, 1], [0.5, 0.25], [5, 2.5]]


@pytest.fixture
def kept(monkeypatch):
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: figures.append(self))
    return figures


def test_the_panels_of_scale_show_what_their_titles_say(kept):
    def rows(k):
        return [(x, {"train": {"seconds": k * x, "memory": k * x * 2**20}}) for x in (1, 2)]

    tables = zip(("images", "pixels", "T", "steps"), (1, 10, 100, 1000))
    scale.plot([("title", x_name, rows(k)) for x_name, k in tables], "x.png")
    axes = kept[0].axes
    assert [list(a.lines[0].get_ydata()) for a in axes] == [[1, 2], [10, 20], [10, 20], [1000, 2000]]
    assert [(a.get_xlabel(), a.get_ylabel()) for a in axes] == [
        ("images", "seconds"), ("pixels", "seconds"), ("pixels", "MiB"), ("steps", "seconds"),
    ]  # fmt: skip


def test_the_order_is_the_fall_of_the_error_with_the_evaluations(tmp_path, monkeypatch, capsys, kept):
    made_up = lambda sampler, levels, *_, **__: (len(levels) ** -2.0, 3 * len(levels))  # noqa: E731
    monkeypatch.setattr(convergence, "measure", made_up)
    convergence.main(["--out", str(tmp_path / "c.png")])
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [row[3:] for row in rows if row[0] == "dpmpp"] == [[], *[["2.00"]] * 5]
    (line,) = (line for line in kept[0].axes[0].lines if line.get_label() == "heun")
    assert list(line.get_xdata()) == [24, 48, 96, 192, 384]
    assert list(line.get_ydata()) == pytest.approx([n**-2.0 for n in (8, 16, 32, 64, 128)])
