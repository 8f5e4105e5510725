"""The demo as a real server in a process of its own, and a plain HTTP client for it."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil

ROOT = Path(__file__).parents[1]
NAMES = (
    "image", "phrases", "budget", "method", "split", "order", "positions", "context", "text",
    "mode", "model",
)  # fmt: skip

# Put on the server's path: notes every connection it opens to another host.
WATCH = """
import os, sys
def note(event, args):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
        where = args[1] if event != "socket.getaddrinfo" else args[0]
        host = where[0] if isinstance(where, tuple) else where
        if str(host) not in ("127.0.0.1", "localhost", "::1", "0.0.0.0", "None", "b'localhost'"):
            with open(os.environ["LITELVLM_TEST_CALLS"], "a") as log:
                log.write(f"{event} {host}\\n")
sys.addaudithook(note)
"""


def free_port():
    """A port nobody listens on."""
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """`python app.py` with some options, started and waited for; `stop` or `kill` ends it.

    Args:
        folder: for its temporary files, its log, and the notes on its connections.
        options: of app.py.
        model: that answers.
        threads: of torch.
        fault: code that runs when the server starts, to make something in it fail.
    """

    def __init__(self, folder, *options, model="tiny-random", threads="1", fault=""):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "sitecustomize.py").write_text(WATCH + fault)
        self.log = self.folder / "log.txt"
        self.uploads = self.folder / "uploads"
        self.calls = self.folder / "calls.txt"
        self.calls.touch()
        self.threads = threads
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.command = [
            sys.executable, str(ROOT / "app.py"), "--model", model, "--device", "cpu",
            "--port", str(self.port), *options,
        ]  # fmt: skip
        self.start()

    def start(self):
        """Start it and wait until it answers."""
        environment = {
            **os.environ,
            "GRADIO_TEMP_DIR": str(self.uploads),
            "PYTHONPATH": f"{self.folder}{os.pathsep}{ROOT}",
            "LITELVLM_TEST_CALLS": str(self.calls),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": self.threads,
        }
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                self.command, stdout=log, stderr=log, env=environment, cwd=self.folder
            )
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                break
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{self.url}/config", timeout=5).status_code in (200, 401):
                    return
            time.sleep(0.2)
        raise RuntimeError(f"the server did not start:\n{self.log.read_text()[-3000:]}")

    def stop(self):
        """Ask it to end, and wait."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.kill()

    def kill(self):
        """End it without asking."""
        self.process.kill()
        self.process.wait(20)

    @property
    def memory(self):
        """Resident bytes."""
        return psutil.Process(self.process.pid).memory_info().rss

    @property
    def handles(self):
        """Open files and sockets."""
        return psutil.Process(self.process.pid).num_fds()

    def files(self):
        """Files in its folder of uploads and results."""
        return [file for file in self.uploads.rglob("*") if file.is_file()]


class Visitor:
    """One client.

    Args:
        server: to talk to.
        session: name of the session; by default one of his own.
    """

    def __init__(self, server, session=None):
        self.url = f"{server.url}/gradio_api"
        self.http = httpx.Client(timeout=120)
        self.session = session or os.urandom(6).hex()

    def upload(self, content, name="picture.png"):
        """Upload a file; the path the server gave it."""
        answer = self.http.post(f"{self.url}/upload", files={"files": (name, content)})
        answer.raise_for_status()
        return answer.json()[0]

    def ask(self, endpoint="ground", *, image=None, data=None, **values):
        """Call an endpoint.

        Returns:
            (kind, payload): kind is "complete", "error" or "refused" (by HTTP status).
        """
        if data is None:
            file = image if isinstance(image, (dict, type(None))) else {
                "path": image, "meta": {"_type": "gradio.FileData"}
            }  # fmt: skip
            given = {"phrases": "the disc", "budget": 16, "method": "litelvlm", "mode": "forced"}
            given |= values
            names = NAMES if endpoint != "sweep" else ("image", "phrases", "methods", "model")
            data = [file if name == "image" else given.get(name) for name in names]
        body = json.dumps({"data": data, "session_hash": self.session})
        headers = {"content-type": "application/json"}
        start = self.http.post(f"{self.url}/call/{endpoint}", content=body, headers=headers)
        if start.status_code != 200:
            return "refused", (start.status_code, start.text)
        event = start.json()["event_id"]
        kind = ""
        with self.http.stream("GET", f"{self.url}/call/{endpoint}/{event}") as stream:
            for line in stream.iter_lines():
                if line.startswith("event: "):
                    kind = line[7:]
                elif line.startswith("data: ") and kind in ("complete", "error"):
                    return kind, json.loads(line[6:])
        return "lost", None
