"""A real Prometheus that scrapes what it is told to, asked over its HTTP API."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

Samples = dict[tuple[tuple[str, str], ...], float]

_LOCAL = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def program(name: str) -> str:
    """The path of a program of Debian's package; under CI a missing one fails."""
    found = shutil.which(name)
    if found is None:
        why = f"{name} is missing: apt-get install prometheus"
        if os.environ.get("CI") == "true":
            pytest.fail(why)
        pytest.skip(why)
    return found


def get(url: str, seconds: float = 20) -> tuple[int, str]:
    """Status and body; a refusal is an answer too."""
    try:
        with _LOCAL.open(url, timeout=seconds) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def until(condition: Callable[[], bool], seconds: float, what: Callable[[], object]) -> None:
    """Waits until it holds: neither a scrape nor an exporter tells anybody when it has news."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, what()
        time.sleep(0.1)


@dataclass(frozen=True)
class Prometheus:
    """A running Prometheus."""

    url: str

    def ask(self, query: str) -> Samples:
        """The instant vector of a query: labels (without the scrape's own) -> value."""
        code, body = get(f"{self.url}/api/v1/query?{urllib.parse.urlencode({'query': query})}")
        assert code == 200, body
        found = {}
        for sample in json.loads(body)["data"]["result"]:
            labels = {k: v for k, v in sample["metric"].items() if k not in {"__name__", "instance"}}
            found[tuple(sorted(labels.items()))] = float(sample["value"][1])
        return found

    def value(self, query: str) -> float | None:
        """The one value of a query; None while there is none."""
        found = self.ask(query)
        assert len(found) < 2, found
        return next(iter(found.values()), None)

    def until(self, query: str, value: float, seconds: float = 30) -> None:
        """Waits until the query's one value is this."""
        until(lambda: self.value(query) == value, seconds, lambda: f"{query} is {self.ask(query)}, not {value}")

    def targets(self) -> dict[str, str]:
        """Job -> the last error of its scrape; empty: none."""
        _, body = get(f"{self.url}/api/v1/targets")
        return {each["labels"]["job"]: each["lastError"] for each in json.loads(body)["data"]["activeTargets"]}


@contextlib.contextmanager
def prometheus(folder: Path, targets: Mapping[str, str]) -> Iterator[Prometheus]:
    """Scrapes each target (job -> host:port) twice a second."""
    jobs = [{"job_name": name, "static_configs": [{"targets": [address]}]} for name, address in targets.items()]
    every = {"scrape_interval": "500ms", "scrape_timeout": "500ms"}
    config = folder / "prometheus.yml"
    config.write_text(json.dumps({"global": every, "scrape_configs": jobs}))  # JSON is YAML
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    log = folder / "prometheus.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                program("prometheus"),
                f"--config.file={config}",
                f"--storage.tsdb.path={folder / 'tsdb'}",
                f"--web.listen-address={address}",
                "--log.level=warn",
            ],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=folder,
            start_new_session=True,
        )
    try:
        found = Prometheus(f"http://{address}")
        until(lambda: _ready(found.url) or process.poll() is not None, 60, log.read_text)
        assert process.poll() is None, log.read_text()
        yield found
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _ready(url: str) -> bool:
    try:
        return get(f"{url}/-/ready", 2)[0] == 200
    except OSError:
        return False


def complaints(page: str) -> str:
    """What `promtool check metrics` has to say of a /metrics page."""
    done = subprocess.run(
        [program("promtool"), "check", "metrics"], input=page, capture_output=True, text=True, check=False, timeout=60
    )
    return f"{done.stdout}{done.stderr}" + (f"exit {done.returncode}" if done.returncode else "")
