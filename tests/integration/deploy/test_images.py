"""Both images, run together: a coordinator with its own PostgreSQL in a volume, and an agent that holds a job."""

from __future__ import annotations

import io
import json
import tarfile
import time
from pathlib import Path

import pytest
from docker.models.containers import Container

from tests.harness.command_line import CommandLine, git_repository
from tests.integration.deploy.world import Fleet, Images
from tests.integration.metrics.prometheus import get, until

pytestmark = [pytest.mark.docker, pytest.mark.root, pytest.mark.timeout(600)]

PIPELINE = """
name: in-a-container
stages:
  - name: a
    jobs:
      closed: {sandbox: bubblewrap, network: none, steps: [{run: "cat note.txt; id -u"}]}
"""


def said(container: Container) -> str:
    return container.logs().decode()


def in_the_open(fleet: Fleet) -> dict[str, str]:
    """What an operator says who trusts the network between the containers."""
    return {"HEADRACE_INSECURE": "true", "HEADRACE_BLOB_PUBLIC_URL": f"http://{fleet.address}:7435"}


def started(fleet: Fleet, **environment: str) -> Container:
    """A coordinator's container that is ready."""
    made = fleet.coordinator(**in_the_open(fleet) | environment)
    made.start()
    until(lambda: ready(fleet), 60, lambda: said(made))
    return made


def ready(fleet: Fleet) -> bool:
    try:
        return get(f"http://{fleet.address}:7434/readyz", 2)[0] == 200
    except OSError:
        return False


def token(container: Container, whose: str) -> str:
    """What an operator copies from the volume."""
    pieces, _ = container.get_archive(f"/var/lib/headrace/coordinator/tokens/{whose}")
    with tarfile.open(fileobj=io.BytesIO(b"".join(pieces))) as tar:
        (file,) = tar.getmembers()
        assert file.mode & 0o777 == 0o600
        content = tar.extractfile(file)
        assert content is not None
        return content.read().decode().strip()


def command_line(fleet: Fleet, folder: Path, client_token: str) -> CommandLine:
    where = {"HEADRACE_URL": f"{fleet.address}:7433", "HEADRACE_TOKEN": client_token, "HEADRACE_INSECURE": "1"}
    return CommandLine(folder, fleet.folder / "state", where)


def stopped(container: Container, within: float) -> int:
    """SIGTERM; returns the exit code. Fails when it takes longer."""
    began = time.monotonic()
    container.kill("SIGTERM")
    code = container.wait(timeout=within + 30)["StatusCode"]
    took = time.monotonic() - began
    assert took < within, f"{took:.1f} s\n{said(container)}"
    return int(code)


def test_a_fleet_in_containers_runs_a_job_and_stops_in_seconds(containers: Fleet) -> None:
    """Confined as the systemd units say: what the coordinator's unit refuses it never needs, and what the agent's
    unit leaves is enough to hold a job."""
    fleet = containers
    first = started(fleet)
    secret = fleet.folder / "token"
    secret.write_text(token(first, "agent"))
    second = fleet.agent(
        secret,
        HEADRACE_URL=f"{fleet.address}:7433",
        HEADRACE_INSECURE="true",
        HEADRACE_NAME="boxed",
        HEADRACE_SLOTS="2",
    )
    second.start()
    git_repository(fleet.folder / "repository", {"headrace.yml": PIPELINE, "note.txt": "from the volume\n"})
    line = command_line(fleet, fleet.folder / "repository", token(first, "client"))

    def connected() -> list[str]:
        return [each["name"] for each in json.loads(line("agents", "--json").out) if each["presence"] == "connected"]

    until(lambda: connected() == ["boxed"], 60, lambda: said(second))
    (agent,) = json.loads(line("agents", "--json").out)
    assert {each["kind"]: each["why_not"] for each in agent["sandboxes"]}["bubblewrap"] == "", agent
    done = line("run", seconds=120)
    assert done.code == 0, done.out + done.err + said(second)
    assert "from the volume" in line("logs", "1").out
    until(lambda: healthy(first) and healthy(second), 60, lambda: (first.attrs["State"], second.attrs["State"]))

    assert stopped(second, 10) == 0, said(second)
    assert stopped(first, 10) == 0, said(first)
    assert "Traceback" not in said(first) + said(second)

    again = started(fleet)  # another container, the same volume
    assert json.loads(line("show", "1", "--json").out)["state"] == "passed"
    assert stopped(again, 10) == 0


def healthy(container: Container) -> bool:
    container.reload()
    return bool(container.attrs["State"]["Health"]["Status"] == "healthy")


def test_a_coordinator_in_a_container_wants_to_be_told_that_the_network_is_trusted(containers: Fleet) -> None:
    """Outside loopback nothing is spoken in the clear by default: exit 2, one sentence, nothing written."""
    refused = containers.coordinator()
    refused.start()
    assert refused.wait(timeout=60)["StatusCode"] == 2
    assert "HEADRACE_INSECURE=true" in said(refused)
    assert len(said(refused).splitlines()) == 1


@pytest.mark.parametrize("kind", ["coordinator", "agent"])
def test_an_image_is_small_labelled_and_without_secrets(built: Images, kind: str) -> None:
    """What everybody who can pull it may see: its configuration, its history, its files."""
    image = built.client.images.get(getattr(built, kind))
    config = image.attrs["Config"]
    assert config["Labels"]["org.opencontainers.image.title"] == f"headrace-{kind}"
    assert config["Labels"]["org.opencontainers.image.version"] == "0.0.0-test"
    assert config["Entrypoint"] == ["/opt/headrace/bin/headrace"]
    assert config["Cmd"] == [kind]
    assert config["StopSignal"] == "SIGTERM"
    assert config["Healthcheck"]["Test"][0] == "CMD"
    assert config["User"] == ("headrace" if kind == "coordinator" else "")
    assert not [each for each in config["Env"] if "TOKEN" in each or "SECRET" in each or "PASSWORD" in each]
    ours = image.attrs["Size"] - built.client.images.get(built.base).attrs["Size"]
    assert ours < {"coordinator": 300e6, "agent": 200e6}[kind]
    assert not [layer for layer in image.history()[:12] if "--find-links" in (layer["CreatedBy"] or "")]


def test_pip_and_wheels_stay_in_the_build(built: Images) -> None:
    """An image that can install nothing is one tool less for whoever breaks in."""
    for each in (built.coordinator, built.agent):
        shown = built.client.containers.run(
            each, ["-c", "ls /wheels /opt/headrace/bin /opt/headrace/lib/python3*/site-packages 2>&1; id -u"],
            entrypoint=["/bin/sh"], remove=True, network_mode="none",
        ).decode()  # fmt: skip
        assert "/opt/headrace/bin:" in shown
        assert "cannot access '/wheels'" in shown
        assert "pip" not in shown.split()
        assert shown.split()[-1] == ("7433" if each == built.coordinator else "0")
