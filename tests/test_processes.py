"""Several processes must do what one does: same weights, same files, any number on resume."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from config import UserError
from machine import choose_device, use_device
from models import checkpoint
from processes import Processes, joined, start

ROOT = Path(__file__).resolve().parent.parent
# What each process says at its end, if threads of its process group are still there (Linux): one of them may abort it
AT_EXIT = """
import atexit, gc, pathlib, sys
gc.disable()  # so that no collection comes in time by chance
def say():
    for task in pathlib.Path("/proc/self/task").glob("*/comm"):
        try:
            name = task.read_text().strip()
        except OSError:  # it has just ended
            continue
        if "gloo" in name:
            print("left", "behind:", name, file=sys.stderr)
atexit.register(say)
"""
FLAGS = ["--preset", "smoke", "--train.accumulate", "2", "--device", "cpu"]


def torchrun(folder, *argv, processes=2, code=0):
    """Run one of our programs in several processes, as a user does; what it prints, or the errors if it is to fail.

    None that succeeds may leave a thread of its process group behind.
    """
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}", "--master-port=0"]
    command += ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", str(ROOT / argv[0]), *map(str, argv[1:])]
    cache = folder / "cache"
    cache.mkdir(exist_ok=True)
    (cache / "sitecustomize.py").write_text(AT_EXIT)  # Python imports it first of all
    path = os.pathsep.join(filter(None, (str(cache), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(cache), "PYTHONPATH": path}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == code, done.stdout + done.stderr
    assert code or "left behind" not in done.stderr, done.stderr
    return done.stderr if code else done.stdout


def states(folder):
    return checkpoint.load(Path(folder) / "last.pth")[1]


def close(a, b):
    for key in ("model", "ema"):
        assert a[key].keys() == b[key].keys()
        for name in a[key]:
            torch.testing.assert_close(a[key][name], b[key][name], rtol=0, atol=1e-6)
    assert [r["step"] for r in a["rows"]] == [r["step"] for r in b["rows"]]
    for one, two in zip(a["rows"], b["rows"]):
        for key in ("train_loss", "val_loss", "grad_norm", "val_q1"):
            assert one[key] == pytest.approx(two[key], rel=1e-4)


def test_two_processes_train_and_generate_as_one_does_and_one_resumes_them(program, tmp_path):
    """Same global batch, after 4 steps with accumulation: weights and EMA agree to 1e-6.  Then one process goes on."""
    out = torchrun(tmp_path, "main.py", *FLAGS, "--train.steps", "4", "--out", "two")
    assert out.count(", 2 processes\n") == 1  # only the first one speaks
    assert program("main", *FLAGS, "--train.steps", "8", "--train.eval_every", "4", "--out", "one")[0] == 0
    assert program("main", *FLAGS, "--train.steps", "4", "--out", "four")[0] == 0
    two = states(tmp_path / "two")
    close(two, states(tmp_path / "four"))
    assert not [name for name in two["model"] if name.startswith(("module.", "_orig_mod."))]
    sampled = ["ddim", "--ckpt", tmp_path / "two/last.pth", "-n", 5, "--batch-size", 2, "--device", "cpu"]
    torchrun(tmp_path, "generate.py", *sampled, "--out", "shared")
    assert program("generate", *sampled, "--out", "alone")[0] == 0
    names = sorted(p.name for p in (tmp_path / "alone").glob("*.png"))
    assert len(names) == 6 and names == sorted(p.name for p in (tmp_path / "shared").glob("*.png"))
    assert all((tmp_path / "alone" / n).read_bytes() == (tmp_path / "shared" / n).read_bytes() for n in names)
    assert program("main", *FLAGS, "--resume", "--train.steps", "8", "--out", "two")[0] == 0
    close(states(tmp_path / "two"), states(tmp_path / "one"))


def test_a_dry_run_of_two_processes_samples_in_one(tmp_path):
    assert "dry run   trained" in torchrun(tmp_path, "main.py", *FLAGS, "--dry-run")
    assert list(tmp_path.iterdir()) == [tmp_path / "cache"]


def test_one_process_needs_no_engine():
    alone = Processes(0, 1, torch.device("cpu"))
    assert alone.main and alone.gather(3) == [3] and alone.main_first(lambda: 5) == 5
    assert alone.sum(torch.tensor(2.0)).item() == 2.0
    alone.wait()


def test_several_processes_wait_for_each_other_and_leave_what_they_add_up_as_it_was(monkeypatch):
    waited, mine = [], torch.tensor(2.0)
    monkeypatch.setattr(torch.distributed, "barrier", lambda: waited.append("here"))
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor: tensor.mul_(3))
    group = Processes(1, 3, torch.device("cpu"))
    group.wait()
    assert waited == ["here"] and group.sum(mine) == 6 and mine == 2


def test_things_are_gathered_by_rank(monkeypatch):
    def all_gather_object(things, thing):
        things[:] = ["first", thing, "last"]

    monkeypatch.setattr(torch.distributed, "all_gather_object", all_gather_object)
    assert Processes(1, 3, torch.device("cpu")).gather("mine") == ["first", "mine", "last"]


@pytest.mark.parametrize(("rank", "order"), [(0, ["work", "wait"]), (1, ["wait", "work"])])
def test_the_first_process_works_before_the_others_and_each_works_once(monkeypatch, rank, order):
    done = []
    monkeypatch.setattr(Processes, "gather", lambda self, refused: done.append("wait") or [refused, False])
    assert Processes(rank, 2, torch.device("cpu")).main_first(lambda: done.append("work") or 5) == 5
    assert done == order


def test_what_is_refused_in_the_first_process_ends_the_others_without_a_word(monkeypatch):
    def work():
        raise UserError("no")

    waited = []
    monkeypatch.setattr("time.sleep", waited.append)
    monkeypatch.setattr(Processes, "gather", lambda self, refused: [True, False])
    with pytest.raises(UserError, match=r"^no$"):
        Processes(0, 2, torch.device("cpu")).main_first(work)
    assert not waited
    with pytest.raises(SystemExit) as end:
        Processes(1, 2, torch.device("cpu")).main_first(work)
    assert end.value.code == 2 and waited[0] > 5  # until torchrun, which sees the first one's end, ends this one


def test_what_is_for_the_first_process_only_is_done_by_no_other(monkeypatch):
    done = []
    monkeypatch.setattr(Processes, "gather", lambda self, refused: [refused, False])
    for rank in (0, 1):
        Processes(rank, 2, torch.device("cpu")).main_only(lambda rank=rank: done.append(rank))
    assert done == [0]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["main.py", *FLAGS, "--data", "nowhere"], "nowhere"),
        (["main.py", *FLAGS, "--out", "taken"], "cannot write in taken"),
        (["generate.py", "ddim", "--device", "cpu", "--out", "taken/x"], "cannot write in taken/x"),
        (["generate.py", "ddim", "--device", "cpu", "--ckpt", "none.pth"], "none.pth"),  # each process sees it
        (["main.py", "--train.lrr", "3"], "--train.lr"),
    ],
)
def test_a_mistake_is_one_line_of_one_process(tmp_path, argv, said):
    (tmp_path / "taken").write_text("a file")
    err = torchrun(tmp_path, *argv, code=1)  # torchrun's own
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and said in lines[0]
    assert f'File "{ROOT}' not in err  # torchrun shows a traceback of its own, but none goes through our programs


def test_the_rank_counts_over_all_machines(monkeypatch):
    for name, value in {"WORLD_SIZE": "4", "RANK": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda kind, timeout, device_id: None)
    group = start("cpu")
    assert (group.rank, group.world, group.main) == (2, 4, False)


def test_the_others_are_not_waited_for_after_an_error(monkeypatch):
    """destroy_process_group() waits until every collective call has ended, which without this process none may."""
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    called = []
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda *_, **__: called.append("joined"))
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: called.append("left"))
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: bool(called))
    with pytest.raises(UserError), joined("cpu"):
        raise UserError("a full disk")
    assert called == ["joined"]
    with joined("cpu") as group:
        assert group.world == 2
    assert called == ["joined", "left"]


def test_a_device_with_a_number_is_refused_where_every_process_needs_its_own(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for beside in ("2", None):  # as torchrun says, or another launcher does not
        monkeypatch.setenv("LOCAL_WORLD_SIZE", beside) if beside else monkeypatch.delenv("LOCAL_WORLD_SIZE")
        with pytest.raises(UserError, match=r"--device cuda:0: .*use --device cuda"):
            start("cuda:0")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")  # one process on each of two machines may name its own
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"no CUDA device or driver here|built without CUDA"):
        start("cuda:0")


def test_a_process_takes_the_gpu_of_its_number_on_its_own_machine(monkeypatch):
    for name, value in {"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    asked = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", asked.append)
    join = lambda kind, timeout, device_id: asked.append((kind, device_id))  # noqa: E731
    monkeypatch.setattr(torch.distributed, "init_process_group", join)
    group = start("cuda")
    assert (group.rank, group.world, group.device) == (3, 4, torch.device("cuda", 1))
    assert asked == [torch.device("cuda", 1), ("nccl", torch.device("cuda", 1))]


def test_alone_a_process_takes_the_first_gpu(monkeypatch):
    for name in ("WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    assert start("auto").device == start("cuda").device == choose_device("cuda") == torch.device("cuda", 0)


def test_a_gpu_that_is_used_is_the_current_one(monkeypatch):
    current = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    assert choose_device("cuda:1") == torch.device("cuda", 1)
    assert (current, torch.backends.cudnn.benchmark) == ([], False)
    assert use_device("cuda:1") == torch.device("cuda", 1)
    assert (current, torch.backends.cudnn.benchmark) == ([torch.device("cuda", 1)], True)


@pytest.mark.parametrize(("built", "said"), [("12.8", "no CUDA device or driver"), (None, "built without CUDA")])
def test_why_there_is_no_cuda_is_said(monkeypatch, built, said):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", built)
    with pytest.raises(UserError, match=f"--device cuda: .*{said}"):
        start("cuda")


def test_alone_a_process_is_the_main_one_whatever_number_a_cluster_gave_it(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv("RANK", "3")
    assert start("cpu").main


def test_each_process_of_a_machine_takes_its_own_gpu_unless_one_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    chosen = [choose_device(name, local=1) for name in ("auto", "cuda", "cuda:0")]
    assert chosen == [torch.device("cuda", 1), torch.device("cuda", 1), torch.device("cuda", 0)]
    with pytest.raises(UserError, match="there are 2 CUDA devices"):
        choose_device("cuda:2")


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "mps", "xpu", "cpu:a", "meta", ""])
def test_devices_that_are_not_there_are_refused(name):
    with pytest.raises(UserError, match="--device"):
        choose_device(name)


def test_auto_finds_a_device():
    assert choose_device("auto").type in ("cpu", "cuda") and choose_device("cpu") == torch.device("cpu")
