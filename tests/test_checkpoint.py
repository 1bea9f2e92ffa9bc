"""Checkpoints are data: what was written comes back, and nothing else gets in."""

import os
import pickle
import stat
from pathlib import Path

import pytest
import torch
from torch import nn

from config import PRESETS, UserError, override, to_dict
from files import put, replacing
from models import checkpoint
from models.unet import UNet

CONFIG = PRESETS["smoke"]


@pytest.fixture
def model():
    return UNet(CONFIG.model, 3, CONFIG.data.size)


def write(path, model, **changes):
    state = {"version": 1, "config": to_dict(CONFIG), "model": model.state_dict(), "ema": model.state_dict(), "step": 3}
    torch.save({**state, **changes}, path)


def refused(path, *words):
    with pytest.raises(UserError) as error:
        config, state = checkpoint.load(path)
        checkpoint.load_weights(UNet(config.model, config.data.channels, config.data.size), state["ema"], path)
    text = str(error.value)
    assert str(path) in text and "\n" not in text
    for word in words:
        assert word in text, text


def test_a_checkpoint_written_on_a_gpu_is_opened_on_the_cpu(tmp_path, model, monkeypatch):
    with monkeypatch.context() as m:
        m.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
        write(tmp_path / "a.pth", model)
    _, state = checkpoint.load(tmp_path / "a.pth")
    assert {weight.device.type for weight in state["ema"].values()} == {"cpu"}


def test_an_error_of_the_device_is_not_blamed_on_the_disk(tmp_path):
    with pytest.raises(RuntimeError, match="CUDA error: an illegal"), replacing(tmp_path / "a"):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    with pytest.raises(UserError, match="cannot write"), replacing(tmp_path / "a"):
        raise RuntimeError("unexpected pos 64 vs 0")
    assert list(tmp_path.iterdir()) == []


def test_the_reason_of_a_full_disk_is_said_in_the_words_of_the_system(tmp_path):
    """As torch reports it: a RuntimeError of its own in front of the system's error."""
    with pytest.raises(UserError, match=r"cannot write .*a: No space left on device; what"), replacing(tmp_path / "a"):
        try:
            raise OSError(28, "No space left on device")
        finally:
            raise RuntimeError("unexpected pos 64 vs 0")


def test_a_weight_whose_bytes_were_damaged_is_noticed(tmp_path, model):
    path = tmp_path / "a.pth"
    checkpoint.save(path, CONFIG, model=model.state_dict(), ema=model.state_dict(), step=7)
    content = bytearray(path.read_bytes())
    largest = max(model.state_dict().values(), key=torch.numel).detach().numpy().tobytes()
    content[content.index(largest) + len(largest) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.pth: not a readable checkpoint \(damaged"):
        checkpoint.load(path)


def test_a_sparse_weight_is_refused(tmp_path, model):
    weights = model.state_dict()
    name = next(name for name, value in weights.items() if value.dim() == 4)
    with pytest.raises(UserError, match=f"{name} is not a tensor of real numbers"):
        checkpoint.load_weights(model, weights | {name: weights[name].to_sparse()}, "a.pth")


def test_what_is_saved_comes_back(tmp_path, model):
    checkpoint.save(tmp_path / "a.pth", CONFIG, model=model.state_dict(), ema=model.state_dict(), step=7, extra=[1, 2])
    config, state = checkpoint.load(tmp_path / "a.pth")
    assert config == CONFIG and state["step"] == 7 and state["extra"] == [1, 2]
    other = UNet(config.model, 3, config.data.size)
    checkpoint.load_weights(other, state["model"], "a.pth")
    for a, b in zip(model.parameters(), other.parameters()):
        assert torch.equal(a, b)


def test_what_is_saved_decides_the_bytes_whatever_the_file_is_called(tmp_path, model):
    """So that a SHA-256 in the documents is that of anyone who trains the same."""
    for name in ("a.pth", "b.pth"):
        checkpoint.save(tmp_path / name, CONFIG, model=model.state_dict(), ema=model.state_dict(), step=7)
        checkpoint.slim(tmp_path / name, tmp_path / f"slim-{name}")
    for prefix in ("", "slim-"):
        assert checkpoint.digest(tmp_path / f"{prefix}a.pth") == checkpoint.digest(tmp_path / f"{prefix}b.pth")


def test_a_loaded_network_is_ready_to_sample_whatever_it_was_trained_with(tmp_path, model):
    config, weights = override(CONFIG, {"model.dropout": 0.5}), model.state_dict()
    checkpoint.save(tmp_path / "a.pth", config, model=weights, ema=weights, step=7)
    found, _, _ = checkpoint.load_model(tmp_path / "a.pth")
    assert not any(part.training for part in found.modules())
    assert not any(weight.requires_grad for weight in found.parameters())
    kernels = [weight for weight in found.parameters() if weight.dim() == 4 and weight.shape[-1] > 1]
    assert kernels and all(w.is_contiguous(memory_format=torch.channels_last) for w in kernels)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_prefixes_of_wrapped_networks_are_removed(tmp_path, model, prefix):
    write(tmp_path / "a.pth", model, ema={prefix + k: v for k, v in model.state_dict().items()})
    _, state = checkpoint.load(tmp_path / "a.pth")
    checkpoint.load_weights(model, state["ema"], "a.pth")


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("plain", [False, True])
def test_a_pickle_that_would_run_code_is_refused_without_running_it(tmp_path, model, inside, plain, recwarn):
    trap = Payload(tmp_path / "ran")
    content = {"version": 1, "config": to_dict(CONFIG), "model": trap} if inside else trap
    if plain:
        (tmp_path / "a.pth").write_bytes(pickle.dumps(content))
    else:
        torch.save(content, tmp_path / "a.pth")
    refused(tmp_path / "a.pth", "run code")
    assert not recwarn.list  # torch's own, of a foreign pickle, would stand beside our one line
    assert not (tmp_path / "ran").exists()
    pickle.loads(pickle.dumps(trap))  # the trap does work
    assert (tmp_path / "ran").exists()


def test_a_checkpoint_is_read_as_data_by_every_torch(tmp_path, model, monkeypatch):
    """Left out, torch before 2.6 would run it."""
    asked, real = [], torch.load
    monkeypatch.setattr(torch, "load", lambda *args, **more: asked.append(more["weights_only"]) or real(*args, **more))
    write(tmp_path / "a.pth", model)
    checkpoint.load(tmp_path / "a.pth")
    assert asked == [True]


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_a_truncated_file_is_refused(tmp_path, model, share):
    write(tmp_path / "a.pth", model)
    whole = (tmp_path / "a.pth").read_bytes()
    (tmp_path / "a.pth").write_bytes(whole[: int(share * len(whole))])
    refused(tmp_path / "a.pth", "not a readable checkpoint")


def test_a_flipped_bit_in_the_index_is_refused_or_harmless(tmp_path, model):
    write(tmp_path / "a.pth", model)
    whole = bytearray((tmp_path / "a.pth").read_bytes())
    for place in (5, 60, 200, len(whole) - 30):
        broken = bytearray(whole)
        broken[place] ^= 0xFF
        (tmp_path / "b.pth").write_bytes(broken)
        try:
            checkpoint.load(tmp_path / "b.pth")
        except UserError as error:
            assert "b.pth" in str(error)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty file"),
        (b"hello, I am a text file\n" * 50, "not a"),
        (b"\x89PNG\r\n", "not a"),
        (bytes(i * i % 251 for i in range(999)), "not a"),
    ],
    ids=("empty", "text", "png", "noise"),
)
def test_other_files_are_refused(tmp_path, content, words):
    (tmp_path / "a.pth").write_bytes(content)
    refused(tmp_path / "a.pth", words)


def test_missing_files_and_folders_are_refused(tmp_path):
    refused(tmp_path / "no.pth", "no such checkpoint")
    refused(tmp_path, "a folder")
    (tmp_path / "file").write_text("no folder")
    refused(tmp_path / "file" / "a.pth", "not a readable checkpoint")


def test_a_checkpoint_of_another_program_is_refused(tmp_path):
    torch.save({"state_dict": {"a": torch.zeros(2)}, "epoch": 3}, tmp_path / "a.pth")
    refused(tmp_path / "a.pth", "not a checkpoint of this program")
    for content in ([1, 2], ["version"], torch.zeros(2)):
        torch.save(content, tmp_path / "a.pth")
        refused(tmp_path / "a.pth", "not a checkpoint of this program")


@pytest.mark.parametrize("version", [99, 0, 1.0, True, "1\n", torch.ones(2)])
def test_a_future_version_is_refused_politely(tmp_path, model, version):
    write(tmp_path / "a.pth", model, version=version)
    refused(tmp_path / "a.pth", f"version {str(version).strip()}, ", "newer")


@pytest.mark.parametrize("step", [-1, 1.0, True, "3", None, torch.ones(2)])
def test_a_step_that_is_no_whole_number_is_refused(tmp_path, model, step):
    write(tmp_path / "a.pth", model, step=step)
    refused(tmp_path / "a.pth", "its step is not a whole number")
    write(tmp_path / "a.pth", model, step=0)
    assert checkpoint.load(tmp_path / "a.pth")[1]["step"] == 0


def test_a_name_that_would_move_the_cursor_is_refused(tmp_path, model):
    write(tmp_path / "a.pth", model, config={**to_dict(CONFIG), "name": "smoke\x1b[2J"})
    refused(tmp_path / "a.pth", "the name of its preset is not plain text")


@pytest.mark.parametrize(
    ("section", "key", "value", "words"),
    [
        ("model", "chanels", 3, "unknown field model.chanels (did you mean model.channels?)"),
        ("model", "channels", "many", "model.channels"),
        ("model", "channels", 7, "multiple of 4"),
        ("diffusion", "schedule", "linaer", "linear"),
        ("data", "size", [30, 30, 30], "height,width"),
        ("data", "size", [31, 31], "multiples of 2"),
    ],
)
def test_a_config_that_does_not_fit_this_program_is_refused(tmp_path, model, section, key, value, words):
    config = to_dict(CONFIG)
    config[section][key] = value
    write(tmp_path / "a.pth", model, config=config)
    refused(tmp_path / "a.pth", words)


def test_a_config_with_a_section_of_its_own_is_refused(tmp_path, model):
    write(tmp_path / "a.pth", model, config={**to_dict(CONFIG), "sampel": {}})
    refused(tmp_path / "a.pth", "unknown section sampel (did you mean sample?)")


def test_weights_that_do_not_fit_are_refused_with_the_first_mismatch(tmp_path, model):
    weights = model.state_dict()
    write(tmp_path / "a.pth", model, ema={**weights, "stem.weight": torch.zeros(2, 3)})
    refused(tmp_path / "a.pth", "stem.weight is (2, 3), not (8, 3, 3, 3)")
    write(tmp_path / "a.pth", model, ema={k: v for k, v in weights.items() if k != "head.bias"})
    refused(tmp_path / "a.pth", "head.bias is missing")
    write(tmp_path / "a.pth", model, ema={**weights, "more": torch.zeros(1)})
    refused(tmp_path / "a.pth", "more is left over")
    write(tmp_path / "a.pth", model, ema=5)
    refused(tmp_path / "a.pth", "missing")
    for other in (weights["head.bias"].long(), weights["head.bias"].tolist(), "head.bias"):
        write(tmp_path / "a.pth", model, ema={**weights, "head.bias": other})
        refused(tmp_path / "a.pth", "head.bias is not a tensor of real numbers")


def test_names_for_other_classes_than_the_networks_are_refused(tmp_path, model):
    write(tmp_path / "a.pth", model, classes=["cats", "dogs"])
    refused(tmp_path / "a.pth", "not the 12 names")
    for classes in (list(range(12)), tuple("abcdefghijkl"), "abcdefghijkl"):
        write(tmp_path / "a.pth", model, classes=classes)
        refused(tmp_path / "a.pth", "classes")


def test_a_checkpoint_without_weights_is_refused(tmp_path):
    torch.save({"version": 1, "config": to_dict(CONFIG), "step": 1}, tmp_path / "a.pth")
    refused(tmp_path / "a.pth", "'ema'")


# ---------------------------------------------------------------- writing


def test_a_failed_write_leaves_the_old_file_and_no_temp(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(UserError, match=r"cannot write .*a\.txt: No space left"), replacing(target) as temp:
        temp.write_text("half")
        raise OSError(28, "No space left on device")
    assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_an_interrupted_write_leaves_the_old_file_and_no_temp(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(KeyboardInterrupt), replacing(target) as temp:
        temp.write_text("half")
        raise KeyboardInterrupt
    assert target.read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_the_new_file_is_whole_before_it_takes_the_name(tmp_path):
    target = tmp_path / "a.txt"
    with replacing(target) as temp:
        temp.write_text("new")
        assert not target.exists()
    assert target.read_text() == "new" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_a_file_may_be_read_by_whom_the_user_lets_read_files(tmp_path, mask, mode):
    before = os.umask(mask)
    try:
        with replacing(tmp_path / "a.txt") as temp:
            temp.write_text("new")
        assert os.umask(mask) == mask
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == mode


def test_the_bytes_are_on_the_disk_before_the_name_points_to_them(tmp_path, monkeypatch):
    done, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: done.append("bytes") or fsync(file))
    monkeypatch.setattr(os, "replace", lambda *names: done.append("name") or replace(*names))
    with replacing(tmp_path / "a.txt") as temp:
        temp.write_text("new")
    assert done == ["bytes", "name"]


def test_a_vanished_folder_is_one_line(tmp_path):
    with pytest.raises(UserError, match="cannot write"), replacing(tmp_path / "gone" / "a.txt"):
        raise AssertionError


def test_weights_survive_a_checkpoint_of_a_compiled_network(tmp_path):
    net = nn.Linear(2, 2)
    compiled = torch.compile(net)
    assert set(checkpoint.plain(compiled.state_dict())) == set(net.state_dict())


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="asks Linux which files are open")
def test_what_was_put_is_closed(tmp_path):
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        put(tmp_path / "a", Path.write_text, "x")
    assert len(os.listdir("/proc/self/fd")) == before


def test_what_is_put_waits_for_the_disk_unless_told_otherwise(tmp_path, monkeypatch):
    done = []
    monkeypatch.setattr(os, "fsync", lambda file: done.append("flushed"))
    put(tmp_path / "a", Path.write_text, "x", flush=False)
    assert not done
    put(tmp_path / "b", Path.write_text, "x")
    assert done
