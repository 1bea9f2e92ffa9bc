"""The page: what it is sent, what it refuses, and that a browser can use it."""

import base64
import io
import json
import os
import re
import shutil
import threading
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlencode

import numpy as np
import pytest
import torch
from PIL import Image

import cli
import explore
from config import UserError
from dataset.pictures import grid
from dataset.pixels import to_uint8
from diffusion.process import GaussianDiffusion
from diffusion.samplers import SAMPLERS
from diffusion.steps import image_noise, spaced, spaced_logsnr, spaced_rho
from lessons.app import PAGE, PARAMETERS, App, listed, parse
from lessons.between import lerp, slerp
from models import checkpoint
from painter import Painter


@pytest.fixture(scope="module")
def app(run_folder, lively):
    server = App(lambda: {"smoke": run_folder / "best.pth", "again": run_folder / "last.pth", "lively": lively})
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def get(app, path, **headers):
    """(status, content type, body)"""
    request = urllib.request.Request(app.url + path, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.headers["Content-Type"], answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers["Content-Type"], error.read()


def picture(data):
    data = base64.b64decode(data.split(",")[1]) if isinstance(data, str) else data
    return np.asarray(Image.open(io.BytesIO(data)))


def walk(app, query):
    status, kind, body = get(app, f"/api/walk?{query}")
    assert (status, kind) == (200, "text/event-stream")
    return [json.loads(event.removeprefix("data: ")) for event in body.decode().split("\n\n") if event]


def test_it_listens_on_this_machine_only(app):
    assert app.server_address[0] == "127.0.0.1"


def test_the_page_needs_nothing_from_elsewhere(app):
    status, kind, body = get(app, "/")
    assert status == 200 and kind.startswith("text/html")
    assert b"http://" not in body and b"https://" not in body and b"//cdn" not in body


def test_a_checkpoint_that_its_training_has_replaced_is_read_anew(run_folder, lively, tmp_path):
    path = tmp_path / "best.pth"
    path.write_bytes((run_folder / "best.pth").read_bytes())
    server = App(lambda: {"one": path})
    try:
        first = server.lab("one")
        assert server.lab("one") is first and first.config.sample.guidance == 1.0
        path.write_bytes(lively.read_bytes())
        os.utime(path, ns=(1, 1))
        assert server.lab("one").config.sample.guidance == 3.0
    finally:
        server.server_close()


def test_a_run_that_begins_later_is_on_the_page_when_it_opens_anew(run_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    server = App(lambda: listed(run_folder / "best.pth"))
    try:
        assert server.about(parse(""))["checkpoints"] == ["smoke/best", "textiles"]
        (tmp_path / "ckpt/new").mkdir(parents=True)
        shutil.copy(run_folder / "best.pth", tmp_path / "ckpt/new")
        with pytest.raises(UserError, match="no 'new/best'"):
            server.lab("new/best")  # only what a page was shown
        assert server.about(parse(""))["checkpoints"] == ["smoke/best", "new/best", "textiles"]
        server.lab("new/best")
    finally:
        server.server_close()


def test_about_says_what_the_checkpoint_can_do(app):
    about = json.loads(get(app, "/api/about")[2])
    assert about["T"] == 50 and about["checkpoints"] == ["smoke", "again", "lively"] and len(about["classes"]) == 12
    assert about["samplers"].keys() == dict.fromkeys(explore.walks.SAMPLERS).keys()
    assert [name for name, hears_eta in about["samplers"].items() if hears_eta] == ["ddim"]
    assert (about["steps"], about["guidance"]) == (5, 1.0)
    assert json.loads(get(app, "/api/about?checkpoint=lively")[2])["guidance"] == 3.0


@pytest.mark.parametrize("eta", ["0", "0.8"])
def test_a_walk_sends_every_step_and_ends_in_the_picture_that_generate_makes(app, program, run_folder, tmp_path, eta):
    frames = walk(app, f"steps=5&seed=4&n=1&eta={eta}")
    assert [f["step"] for f in frames] == list(range(6))
    assert [f["t"] for f in frames] == [50, 40, 30, 20, 10, 0]
    argv = ["--ckpt", run_folder, "-n", "1", "--batch-size", "1", "--steps", "5", "--seed", "4", "--eta", eta]
    assert program("generate", "ddim", *argv)[0] == 0
    expected = np.asarray(Image.open(tmp_path / "out" / "ddim" / "00000.png"))
    assert (picture(frames[-1]["x"]) == expected).all() and (picture(frames[-1]["x0"]) == expected).all()
    assert (picture(frames[0]["x"]) != expected).any()


@pytest.mark.parametrize("sampler", list(explore.walks.SAMPLERS))
def test_every_sampler_reaches_the_picture(app, sampler):
    frames = walk(app, f"sampler={sampler}&steps=4&label=stars&guidance=2&n=2")
    assert frames[-1]["t"] == 0 and len(np.unique(picture(frames[-1]["x"]))) > 10


class Library:
    """What the same parameters mean with nothing of the lessons in between."""

    def __init__(self, path, weights="ema", **given):
        p = {name: default for name, (_, default) in PARAMETERS.items()} | given
        model, config, state = checkpoint.load_model(path, weights=weights)
        diffusion, self.sampler = GaussianDiffusion.from_config(config.diffusion), SAMPLERS[p["sampler"]]
        classes, numbers = state["classes"], range(p["n"])
        y = {None: [i % len(classes) for i in numbers], "none": None}.get(p["label"], [p["label"]] * p["n"])
        y = None if y is None else torch.tensor([classes.index(i) if i in classes else int(i) for i in y])
        guidance = config.sample.guidance if p["guidance"] is None else p["guidance"]
        self.denoise, self.schedule = diffusion.denoiser(model, y, guidance=guidance), diffusion.schedule
        steps = p["steps"] or config.sample.steps
        self.timesteps = {
            "dpmpp": spaced_logsnr(self.schedule, steps), "heun": spaced_rho(self.schedule, steps, 7.0)
        }.get(p["sampler"], spaced(self.schedule.T, steps))  # fmt: skip
        self.options = {"eta": p["eta"]} if p["sampler"] == "ddim" else {}
        self.noise_like = image_noise(p["seed"] or 0, numbers)
        a, b = (f(torch.empty(p["n"], 3, 16, 16)) for f in (self.noise_like, image_noise(p["other"], numbers)))
        self.x, self.between = a, {"slerp": slerp, "lerp": lerp}[p["along"]](a, b, p["where"])

    def stages(self, x):
        """(t, x, x0) of every step, as pictures."""
        walk = self.sampler(
            self.denoise, self.schedule, x, timesteps=self.timesteps, noise_like=self.noise_like, **self.options
        )
        return [(step.t, self.picture(step.x), self.picture(step.x0)) for step in walk]

    def picture(self, x):
        x = to_uint8(x)
        return (x[0] if len(x) == 1 else grid(x, padding=1)).permute(1, 2, 0).numpy().astype(int)


def same(a, b):
    """Two pictures are one; another thread may round the last bit otherwise."""
    return a.shape == b.shape and np.abs(a.astype(int) - b).max() <= 1


BASE = {"checkpoint": "lively", "n": 2, "steps": 4}
WALKS = (
    {"sampler": "ddpm"}, {"sampler": "dpmpp"}, {"sampler": "heun"}, {"sampler": "pc"}, {"steps": 7}, {"eta": 0.8},
    {"seed": 3}, {"label": "stars"}, {"label": "none"}, {"label": "none", "guidance": 2.0}, {"label": "7"},
    {"guidance": 0.0}, {"guidance": 1.5}, {"n": 5},
    {"n": 1}, {"checkpoint": "smoke"},
)  # fmt: skip
MORPHS = (
    {"other": 5}, {"where": 0.8}, {"along": "lerp"}, {"seed": 3}, {"label": "stars"}, {"label": "none"},
    {"guidance": 0.0}, {"guidance": 1.5}, {"steps": 7}, {"n": 5}, {"checkpoint": "smoke"},
)  # fmt: skip


def test_every_parameter_is_tried_below():
    assert {name for change in WALKS + MORPHS for name in change} == set(PARAMETERS)


@pytest.mark.parametrize("change", ({}, {"steps": None}, *WALKS), ids=str)
def test_a_walk_is_what_the_library_makes_of_the_same_parameters(app, change):
    p = BASE | change
    frames = walk(app, urlencode({name: value for name, value in p.items() if value is not None}))
    path = app.checkpoints[p["checkpoint"]]
    library = Library(path, **p)
    first, expected = library.picture(library.x), library.stages(library.x)
    assert [f["step"] for f in frames] == list(range(len(expected) + 1)) and frames[0]["x0"] is None
    assert {f["of"] for f in frames} == {len(expected)} and frames[0]["t"] == 50
    assert same(picture(frames[0]["x"]), first)
    for frame, (t, x, x0) in zip(frames[1:], expected):
        assert frame["t"] == t and same(picture(frame["x"]), x) and same(picture(frame["x0"]), x0)
    plain = Library(app.checkpoints["lively"], **BASE)
    assert not change or not same(plain.stages(plain.x)[-1][1], expected[-1][1]), "this parameter would do nothing"


@pytest.mark.parametrize("change", ({}, *MORPHS), ids=str)
def test_a_morph_is_what_the_library_makes_of_the_same_parameters(app, change):
    base = BASE | {"seed": 1, "other": 2, "where": 0.3}
    p = base | change
    status, kind, body = get(app, f"/api/morph?{urlencode(p)}")
    assert (status, kind) == (200, "image/png")
    expected, plain = (Library(app.checkpoints[q["checkpoint"]], **q) for q in (p, base))
    expected, plain = (made.stages(made.between)[-1][1] for made in (expected, plain))
    assert same(picture(body), expected)
    assert not change or not same(plain, expected), "this parameter would do nothing"


def test_the_command_serves_the_checkpoint_the_weights_and_the_seed_asked_for(program, lively, monkeypatch):
    served = []

    def until_interrupted(app):
        assert app.about(parse(""))["seed"] == 7
        served.append((app.url, next(iter(app.checkpoints.values())), list(app.walk(parse("n=2&steps=4")))[-1]["x"]))
        raise KeyboardInterrupt

    monkeypatch.setattr(App, "serve_forever", until_interrupted)
    argv = ["--ckpt", lively, "--weights", "raw", "--seed", 7, "--port", 0, "--device", "cpu"]
    code, out, _ = program("explore", "app", *argv)
    ((url, path, end),) = served
    assert code == 0 and f"open {url} in a browser" in out and path == lively
    assert out.startswith(f"{lively}: preset smoke, step 8, raw weights\n")
    raw, averaged = (Library(lively, weights, n=2, steps=4, seed=7) for weights in ("raw", "ema"))
    assert same(picture(end), raw.stages(raw.x)[-1][1])
    assert not same(picture(end), averaged.stages(averaged.x)[-1][1])


@pytest.mark.parametrize("path", ["/", "/api/about", "/api/walk?steps=1", "/api/morph?steps=1"])
def test_the_browser_keeps_nothing(app, path):
    """The same address means another picture when another checkpoint is served at it."""
    with urllib.request.urlopen(app.url + path, timeout=60) as answer:
        assert answer.headers["Cache-Control"] == "no-store"


def test_the_network_computes_for_one_request_at_a_time(app):
    assert list(app.turns(app.lock.locked() for _ in range(3))) == [True] * 3


def test_a_mistake_of_ours_is_one_line_too_and_the_next_is_served(app, monkeypatch):
    def broken(self, p):
        raise RuntimeError("out of\nmemory")

    monkeypatch.setattr(App, "morph", broken)
    status, _, body = get(app, "/api/morph")
    assert status == 500 and json.loads(body) == {"error": "RuntimeError: out of memory"}
    assert get(app, "/api/about")[0] == 200


def test_a_mistake_in_the_middle_of_a_walk_is_its_last_event_and_the_next_is_served(app, monkeypatch):
    def broken(self, p):
        yield {"step": 0}
        raise RuntimeError("out of\nmemory")

    monkeypatch.setattr(App, "walk", broken)
    status, _, body = get(app, "/api/walk")
    events = [json.loads(event.removeprefix("data: ")) for event in body.decode().strip().split("\n\n")]
    assert status == 200 and events == [{"step": 0}, {"error": "RuntimeError: out of memory"}]
    assert get(app, "/api/about")[0] == 200
    assert "told.error" in PAGE.read_text()


def test_the_page_speaks_of_what_the_server_knows(app):
    """A name that only one of the two has is a control that does nothing; a browser would not even say so."""
    page = PAGE.read_text()
    form, script = re.search("<form.*?</form>", page, re.DOTALL)[0], page.split("<script>")[1]
    fields = set(re.findall(r'name="(\w+)"', form))
    besides = set(re.findall(r"(\w+):", re.search(r"wanted = query\(\{(.*?)\}\)", script)[1]))
    assert fields | besides == set(PARAMETERS) and not fields & besides
    assert set(re.findall(r'field\("(\w+)"\)', script)) <= fields
    ids = set(re.findall(r'\bid="(\w+)"', page))
    assert set(re.findall(r'\$\("(\w+)"\)', script)) <= ids and {"slider", "other", "along"} <= ids
    assert {get(app, path)[0] for path in re.findall(r'"(/api/\w+)\?', script)} == {200}
    about = json.loads(get(app, "/api/about")[2])
    assert set(re.findall(r"about\.(\w+)", script)) <= about.keys()
    frames = walk(app, "steps=1")
    assert set(re.findall(r"frame\.(\w+)", script)) == frames[0].keys() == frames[1].keys()
    # a class by its name, as the server reads it: "2" is the class called 2, wherever it stands
    assert re.search(r"about\.classes\.map\(c => \[c, c\]\)", script) and "about.seed" in script
    paths = re.search(r'<select id="along">(.*?)</select>', page)[1]
    assert parse("")["along"] == re.findall(r'value="(\w+)"', paths)[0]
    for name, texts in (
        ("along", re.findall(r'value="(\w+)"', paths)),
        ("n", re.findall(r"<option[^>]*>(\d+)", form)),
        ("eta", re.findall(r'name="eta".*?min="(.*?)" max="(.*?)"', form)[0]),
        ("where", re.findall(r'id="slider".*?min="(.*?)" max="(.*?)"', page)[0]),
    ):
        assert len({parse(f"{name}={text}")[name] for text in texts}) == len(texts) >= 2


def test_the_morph_begins_and_ends_in_the_pictures_of_its_seeds(app):
    ends = [walk(app, f"steps=4&seed={seed}")[-1]["x"] for seed in (1, 2)]
    for where, end in zip((0, 1), ends):
        status, kind, body = get(app, f"/api/morph?steps=4&seed=1&other=2&where={where}")
        assert (status, kind) == (200, "image/png")
        assert np.abs(picture(body).astype(int) - picture(end)).max() <= 1


@pytest.mark.parametrize(
    "path, status, expected",
    [
        ("/nothing", 404, "/nothing: there are"),
        ("/../config.py", 404, "there are"),
        ("/api/walk?steps=0", 400, "steps: '0' is not a whole number"),
        ("/api/walk?steps=51", 400, "T = 50, so 1 to 50"),
        ("/api/walk?eta=9", 400, "eta must be from 0"),
        ("/api/walk?eta=nan", 400, "eta: 'nan' is not a number"),
        ("/api/walk?seed=-1", 400, "seed"),
        ("/api/walk?sampler=magic", 400, "'magic' is not one of ddpm"),
        ("/api/walk?label=nobody", 400, "label nobody: unknown"),
        ("/api/walk?n=1000", 400, "n: '1000'"),
        ("/api/walk?checkpoint=../../secret", 400, "there is no '../../secret'"),
        ("/api/walk?colour=red", 400, "colour: unknown"),
        ("/api/morph?where=2", 400, "where: '2' is not a number from 0 to 1"),
        ("/api/morph?along=train", 400, "'train' is not one of slerp, lerp"),
    ],
)
def test_a_bad_request_is_one_line_and_the_next_is_served(app, path, status, expected):
    code, kind, body = get(app, path)
    message = json.loads(body)["error"]
    assert (code, kind) == (status, "application/json") and expected in message and "\n" not in message
    assert not message.startswith("--")  # the page has fields, no flags
    assert get(app, "/api/about")[0] == 200


def test_other_methods_and_other_hosts_are_refused(app):
    request = urllib.request.Request(app.url + "/api/walk", data=b"x", method="POST")
    with pytest.raises(urllib.error.HTTPError, match="501"):
        urllib.request.urlopen(request, timeout=60)
    assert get(app, "/", Host="elsewhere.example")[0] == 403
    assert get(app, "/", Host="localhost:80")[0] == 200


def test_a_reader_that_goes_away_does_no_harm(app):
    answer = urllib.request.urlopen(app.url + "/api/walk?steps=50&n=4", timeout=60)
    answer.read(100)
    answer.close()
    assert walk(app, "steps=2")[-1]["t"] == 0


def test_every_checkpoint_has_a_name_of_its_own(run_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ckpt" / "mine").mkdir(parents=True)
    shutil.copy(run_folder / "best.pth", tmp_path / "ckpt" / "mine" / "best.pth")
    assert list(listed("ckpt/mine/best.pth")) == ["mine/best", "textiles"]
    assert list(listed(run_folder / "last.pth")) == ["smoke/last", "mine/best", "textiles"]
    assert list(listed(cli.SHIPPED)) == ["textiles", "mine/best"]
    Path("small.pth").touch()
    assert list(listed("small.pth")) == ["small.pth", "mine/best", "textiles"]
    other = tmp_path / "elsewhere/mine/best.pth"  # another run of the same name
    assert listed(other) == {
        "mine/best": other,
        "ckpt/mine/best.pth": Path("ckpt/mine/best.pth"),
        "textiles": cli.SHIPPED,
    }


def test_stopping_ends_a_walk_under_way(run_folder):
    server = App(lambda: {"smoke": run_folder / "best.pth"})
    frames = server.walk(parse("steps=50"))
    next(frames), next(frames)
    server.stop()
    with pytest.raises(ConnectionError):
        next(frames)


def test_a_port_in_use_is_one_line(app, program, run_folder):
    code, _, err = program("explore", "app", "--ckpt", run_folder, "--port", app.server_port, "--device", "cpu")
    assert code == 2 and err.count("\n") == 1 and f"--port {app.server_port}" in err


def test_a_browser_denoises_and_morphs(app):
    """Skipped where there is no Playwright or no Chromium."""
    sync_api = pytest.importorskip("playwright.sync_api")
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium here")
    with sync_api.sync_playwright() as p:
        page = p.chromium.launch(executable_path=browser, args=["--no-sandbox"]).new_page()
        errors = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(app.url)
        page.wait_for_function("document.getElementById('between').naturalWidth > 0")
        assert page.inner_text("#level") == "x at level t = 0: step 5 of 5"
        before = page.get_attribute("#between", "src")
        page.eval_on_selector("#slider", "e => { e.value = 0.5; e.dispatchEvent(new Event('input')) }")
        page.wait_for_function("before => document.getElementById('between').src !== before", arg=before)
        page.eval_on_selector("[name=steps]", "e => { e.removeAttribute('max'); e.value = 99 }")
        page.click("#go")
        page.wait_for_function("document.getElementById('error').textContent.includes('1 to 50')")
        assert not errors


def test_seed_0_is_a_seed(run_folder):
    """And not the painter's own."""
    painter = Painter.open(run_folder / "best.pth", seed=7)
    asked, own = painter.begin([0], 0)[0], painter.begin([0])[0]
    assert torch.equal(asked, Painter.open(run_folder / "best.pth").begin([0])[0]) and not torch.equal(asked, own)
