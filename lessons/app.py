"""How can one play with a sampler?  A page on this machine: python explore.py app

Python's own web server; no further package is needed.  It listens on 127.0.0.1 alone, takes only GET, and answers every
mistake with one line.  The page is app.html; what it asks for:

    /api/about  what the checkpoint can do (JSON)        /api/walk   a denoising as it happens (server-sent events)
    /api/morph  one picture between two seeds (PNG)
"""

import argparse
import base64
import contextlib
import io
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import cli
import sampling
from config import UserError
from dataset import pictures
from diffusion.samplers import SAMPLERS, ddim
from diffusion.steps import last
from lessons import figure
from lessons.between import PATHS
from lessons.lab import Lab

PAGE = Path(__file__).with_name("app.html")


# what the page may ask with, and what it means when left out
PARAMETERS = {
    "checkpoint": (str, None),
    "sampler": (cli.one_of(SAMPLERS), "ddim"),
    "steps": (cli.whole(1), None),
    "eta": (cli.number(), 0.0),
    "seed": (cli.whole(0), None),
    "other": (cli.whole(0), 1),
    "where": (cli.fraction, 0.0),
    "along": (cli.one_of(PATHS), "slerp"),
    "n": (cli.whole(1, 16), 1),
    "label": (str, None),
    "guidance": (cli.number(), None),
}


def parse(query):
    """{parameter: value} of a query string, complete.  Raises UserError for what is unknown or out of range."""
    given = parse_qs(query)
    values = {name: default for name, (_, default) in PARAMETERS.items()}
    for name, texts in given.items():
        if name not in PARAMETERS:
            raise UserError(f"{name[:40]}: unknown; there are {', '.join(PARAMETERS)}")
        try:
            values[name] = PARAMETERS[name][0](texts[-1])
        except argparse.ArgumentTypeError as error:
            raise UserError(f"{name}: {error}") from None
    return values


def png(images):
    """(N, C, H, W) in [-1, 1] -> the bytes of one PNG; the page enlarges it."""
    file = io.BytesIO()
    image = figure.visible(images)
    pictures.save_png(file, image[0] if len(image) == 1 else pictures.grid(image, padding=1))
    return file.getvalue()


def data_url(images):
    return "data:image/png;base64," + base64.b64encode(png(images)).decode()


class App(ThreadingHTTPServer):
    """The server: which checkpoints there are, and the one in use.

    find: () -> {name: path}, the checkpoints there are, the one to begin with first; asked whenever a page opens, as
    a training may have begun since.  A port of 0 takes any that is free.
    """

    daemon_threads = True

    def __init__(self, find, device="cpu", weights="ema", seed=0, port=0):
        self.find, self.checkpoints = find, find()
        self.device, self.weights, self.seed = device, weights, seed
        self.lock = threading.Lock()  # one network evaluation at a time: two would only share the processor
        self.loaded, self.stopping = (None, None), False
        self.lab(None)  # what cannot be loaded is reported before the page opens
        super().__init__(("127.0.0.1", port), Handler)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    def lab(self, name):
        """The Lab of a checkpoint by its name (None: the first); only those listed can be named."""
        name = next(iter(self.checkpoints)) if name is None else name
        if name not in self.checkpoints:
            raise UserError(f"checkpoint: there is no {name[:80]!r}; there are {', '.join(self.checkpoints)}")
        with self.lock:
            path = Path(self.checkpoints[name])
            version = path, path.stat().st_mtime_ns if path.exists() else None  # a training replaces it now and then
            if self.loaded[0] != version:
                self.loaded = (version, Lab.open(path, self.device, self.weights, self.seed))
            return self.loaded[1]

    def about(self, p):
        """What the page needs to draw its controls."""
        self.checkpoints = self.find()
        lab = self.lab(p["checkpoint"])
        return {
            "checkpoints": list(self.checkpoints),
            "samplers": {name: sampling.has(name, "eta") for name in SAMPLERS},
            "T": lab.T,
            "steps": lab.config.sample.steps,
            "guidance": lab.config.sample.guidance,
            "seed": lab.seed,
            "classes": list(lab.classes),
        }

    def turns(self, walk):
        """The steps of a walk, each while no other request computes.  Raises ConnectionError when the server stops."""
        while True:
            with self.lock:
                if self.stopping:
                    raise ConnectionAbortedError
                step = next(walk, None)
            if step is None:
                return
            yield step

    def stop(self):
        """Let the step under way finish, and begin no other: PyTorch must not be at work when the program ends."""
        self.stopping = True
        with self.lock:
            self.server_close()

    def walk(self, p):
        """A generator of one dictionary a step: {"step", "of", "t", "x", "x0"}.  Mistakes are raised at once."""
        lab, numbers = self.lab(p["checkpoint"]), range(p["n"])
        timesteps, y = lab.spaced(p["steps"], p["sampler"]), lab.labels(p["label"], numbers)
        options = {"eta": p["eta"]} if sampling.has(p["sampler"], "eta") else {}
        if options:
            sampling.check_eta(lab.schedule, timesteps, p["eta"], flag="eta")
        x, noise_like = lab.begin(numbers, p["seed"])
        denoise = lab.denoiser(y, None if y is None else p["guidance"])
        sampler = SAMPLERS[p["sampler"]]
        steps = sampler(denoise, lab.schedule, x, timesteps=timesteps, noise_like=noise_like, **options)

        def frames():
            yield {"step": 0, "of": len(timesteps), "t": lab.T, "x": data_url(x), "x0": None}
            for i, step in enumerate(self.turns(steps), 1):
                yield {"step": i, "of": len(timesteps), "t": step.t, "x": data_url(step.x), "x0": data_url(step.x0)}

        return frames()

    def morph(self, p):
        """The bytes of a PNG: the pictures `where` between the seeds `seed` and `other`."""
        lab, numbers = self.lab(p["checkpoint"]), range(p["n"])
        y, timesteps = lab.labels(p["label"], numbers), lab.spaced(p["steps"])
        a, b = (lab.begin(numbers, seed)[0] for seed in (p["seed"], p["other"]))
        denoise = lab.denoiser(y, None if y is None else p["guidance"])
        x = PATHS[p["along"]](a, b, p["where"])
        return png(lab.finished(last(self.turns(ddim(denoise, lab.schedule, x, timesteps=timesteps)))))


class Handler(BaseHTTPRequestHandler):
    """One request."""

    def do_GET(self):
        url = urlsplit(self.path)
        host = (self.headers.get("Host") or "").rsplit(":", 1)[0]
        if host not in ("127.0.0.1", "localhost"):  # a page elsewhere that renamed this address to its own
            return self.send_error(403, "only http://127.0.0.1 is answered")
        try:
            if url.path == "/":
                return self.reply(PAGE.read_bytes(), "text/html; charset=utf-8")
            if url.path == "/api/about":
                return self.reply(json.dumps(self.server.about(parse(url.query))).encode(), "application/json")
            if url.path == "/api/morph":
                return self.reply(self.server.morph(parse(url.query)), "image/png")
            if url.path == "/api/walk":
                return self.stream(self.server.walk(parse(url.query)))
        except UserError as error:
            return self.send_error(400, " ".join(str(error).split()).removeprefix("--"))
        except ConnectionError:  # the page was closed, or asked for something else meanwhile
            return None
        except Exception as error:  # one bad request must not end the server
            return self.send_error(500, one_line(error))
        return self.send_error(404, f"{url.path[:80]}: there are /, /api/about, /api/walk and /api/morph")

    def reply(self, body, kind, code=200):
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        self.wfile.write(body)

    def stream(self, frames):
        """Server-sent events: one a frame, as it is made; {"error"} if one fails, as the answer has long begun."""
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        try:
            for frame in frames:
                self.wfile.write(f"data: {json.dumps(frame)}\n\n".encode())
                self.wfile.flush()
        except ConnectionError:
            raise
        except Exception as error:
            self.wfile.write(f"data: {json.dumps({'error': one_line(error)})}\n\n".encode())

    def send_error(self, code, message=None, explain=None):
        """Any error, those of the base class too, as one line of JSON."""
        self.close_connection = True
        body = json.dumps({"error": message or self.responses.get(code, ("error",))[0]}).encode()
        with contextlib.suppress(OSError):  # nobody there to tell
            self.reply(body, "application/json", code)

    def log_message(self, *_):
        pass  # a line a request would bury the address


def one_line(error):
    """What went wrong, to be shown."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def listed(path):
    """{name: path} of the checkpoints to choose from: the one asked for, the runs in ckpt/, the one shipped with us."""
    names, known = {}, set()
    for p in (Path(path), *sorted(Path("ckpt").glob("*/best.pth")), cli.SHIPPED):
        name = p.stem if p.parent.name == "assets" else f"{p.parent.name}/{p.stem}"
        if p.resolve() not in known:
            names[str(p) if name in names or not p.parent.name else name] = p
        known.add(p.resolve())
    return names


def serve(path, device, weights, seed, port):
    """Answer until Ctrl-C."""
    try:
        app = App(lambda: listed(path), device, weights, seed, port)
    except OSError as error:
        raise UserError(f"--port {port}: {error.strerror}; choose another, or 0 for any free one") from None
    print(app.lab(None).origin)
    print(f"open {app.url} in a browser on this machine; Ctrl-C stops", flush=True)
    try:
        app.serve_forever()
    except KeyboardInterrupt:
        print()
    finally:
        app.stop()
    return 0
