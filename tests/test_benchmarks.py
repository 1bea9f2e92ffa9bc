"""The benchmarks are programs like the others: a mistake is one line, and found before the work."""

import pytest
import torch

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
