"""The pure parts of services: their container, what the engine says of them, their share of a slot."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.sandbox import container, service
from agent.sandbox.choose import Offer, Wish, choose
from agent.sandbox.container import Container, Image
from agent.sandbox.limits import LEAST, NoRoomError, parted
from agent.sandbox.protocol import Ability, Limits, SandboxRequest, Service, ServiceState
from headrace.pipeline.plan import Network, SandboxKind

DB = Service("db", "postgres:16", {"POSTGRES_PASSWORD": "x=y z"}, "pg_isready -U postgres", 60.0)
REQUEST = SandboxRequest(7, "a1", 0, Path("/s/7"), Path("/w/7"), Network.NONE, services=(DB,))
IMAGE = Image("sha256:1", {"PGDATA": "/data", "PATH": "/usr/lib/postgresql/bin"}, ("/data", "/hr/", "/"))
PLACE = Container(IMAGE, Limits(1.0, 1 << 30, 99), "{}", "headrace-1-7", "0:0", None, "", inward=True)
NEW, OLD = (1, 50), (1, 41)


def test_a_service_is_what_its_image_says_behind_the_jobs_walls() -> None:
    """Entrypoint, command, variables and user are the image's own; nothing that holds a job in is missing."""
    made = service.body(REQUEST, DB, PLACE, api=NEW)
    assert not {"Entrypoint", "Cmd", "User", "WorkingDir", "ExposedPorts"} & set(made)
    assert made["Env"] == ["POSTGRES_PASSWORD=x=y z"]
    assert made["Image"] == "sha256:1"
    host = made["HostConfig"]
    walls = container.body(REQUEST, PLACE)["HostConfig"]
    for name in set(walls) - {"Mounts", "Tmpfs", "LogConfig"}:
        assert host[name] == walls[name], name
    assert "Mounts" not in host
    assert "PortBindings" not in host
    assert host["SecurityOpt"] == ["no-new-privileges", "seccomp={}"]


def test_a_service_is_found_by_its_labels_and_by_its_host_name() -> None:
    """The labels are all that a restarted agent knows of it; the alias is what a step calls it."""
    made = service.body(REQUEST, DB, PLACE, api=NEW)
    assert made["Labels"] == {"headrace.agent": "a1", "headrace.attempt": "7", "headrace.service": "db"}
    assert made["NetworkingConfig"] == {"EndpointsConfig": {"headrace-1-7": {"Aliases": ["db"]}}}
    assert made["HostConfig"]["NetworkMode"] == "headrace-1-7"
    assert service.name_of({"Config": made}) == "db"


def test_a_service_of_an_untrusted_job_has_no_capabilities() -> None:
    """Trust is the job's: its services have what it has."""
    assert service.body(REQUEST, DB, PLACE, api=NEW)["HostConfig"]["CapAdd"] == []
    trusted = service.body(replace(REQUEST, trusted=True), DB, PLACE, api=NEW)
    assert trusted["HostConfig"]["CapAdd"] == list(container.TRUSTED_CAPABILITIES)


def test_a_services_volumes_lie_in_memory_where_any_user_of_the_image_may_write() -> None:
    """An anonymous volume would outlive the container, and only the image knows whose its folder was."""
    made = service.body(REQUEST, DB, PLACE, api=NEW)["HostConfig"]["Tmpfs"]
    assert list(made) == ["/data", "/hr"]
    assert all(options.endswith(",mode=1777") and "nosuid" in options for options in made.values())


def test_a_services_output_is_kept_within_bounds() -> None:
    """The engine writes it to the machine's disk, and nobody reads it unless the service fails."""
    assert service.body(REQUEST, DB, PLACE, api=NEW)["HostConfig"]["LogConfig"] == {
        "Type": "json-file",
        "Config": {"max-size": "1m", "max-file": "2"},
    }


@pytest.mark.parametrize("log", [b"", b"short\n", b"a\n" * 100_000, b"x" * 100_000])
def test_the_last_lines_of_a_log_are_shown_whole(log: bytes) -> None:
    """Half a line at the beginning would read like another message."""
    shown = service.tail(log)
    assert log.endswith(shown)
    assert len(shown) <= service.LOG_TAIL
    assert len(shown) > service.LOG_TAIL - 10 or shown == log
    assert shown[:1] in (b"a", b"x", b"s", b"")


def test_the_ready_command_is_the_engines_health_check() -> None:
    """Often until it succeeds, then hardly any more; an older engine knows one interval only."""
    new = service.body(REQUEST, DB, PLACE, api=NEW)["Healthcheck"]
    assert new["Test"] == ["CMD", "sh", "-c", DB.ready]
    assert new["StartInterval"] < 1_000_000_000 < new["Interval"]
    assert new["StartPeriod"] > DB.timeout_s * 1_000_000_000
    old = service.body(REQUEST, DB, PLACE, api=OLD)["Healthcheck"]
    assert (old["Interval"], "StartInterval" in old) == (1_000_000_000, False)
    without = service.body(REQUEST, replace(DB, ready=""), PLACE, api=NEW)["Healthcheck"]
    assert without == {"Test": ["NONE"]}, "the image's own decides nothing"


def test_a_network_without_a_way_out_has_no_way_out_for_names_either() -> None:
    """Older engines would ask the host's resolver on a job's behalf: enough to carry a secret away."""
    assert container.body(REQUEST, PLACE)["HostConfig"]["Dns"] == ["192.0.2.53"]
    assert "Dns" not in container.body(REQUEST, replace(PLACE, inward=False))["HostConfig"]


def inspected(health: dict[str, object] | None = None, test: str = "CMD", **state: object) -> dict[str, object]:
    """What an engine says of a service."""
    now = {"Running": True, "ExitCode": 0, "OOMKilled": False, "Health": health, **state}
    limits = {"NanoCpus": 500_000_000, "Memory": 16 << 20, "PidsLimit": 16}
    return {"State": now, "Config": {"Healthcheck": {"Test": [test]}}, "HostConfig": limits}


def log(output: str, code: int = 1) -> dict[str, object]:
    """A health check that has not succeeded."""
    return {"Status": "starting", "Log": [{"ExitCode": code, "Output": output}]}


LIMITS = Limits(0.5, 16 << 20, 16)
RUNS = ServiceState(running=True, ready=False, limits=LIMITS)
ENDED = ServiceState(running=False, ready=False, exit_code=3, limits=LIMITS)


@pytest.mark.parametrize(
    ("said", "state"),
    [
        (inspected(test="NONE"), replace(RUNS, ready=True)),
        (inspected({"Status": "starting", "Log": None}), RUNS),
        (inspected({"Status": "healthy", "Log": []}), replace(RUNS, ready=True)),
        (inspected(log("no\n answer\n")), replace(RUNS, said="no answer")),
        (inspected({"Status": "healthy"}, Running=False, ExitCode=3), ENDED),
        (
            inspected(test="NONE", Running=False, ExitCode=137, OOMKilled=True),
            replace(ENDED, exit_code=137, out_of_memory=True),
        ),
    ],
)
def test_what_the_engine_says_is_read(said: dict[str, object], state: ServiceState) -> None:
    """Ready is who runs and has been found healthy once, or has nothing to ask."""
    assert service.state(said) == state


def test_an_image_without_a_shell_is_told_from_one_that_is_not_ready() -> None:
    """It never will be, and the user can mend it."""
    output = 'OCI runtime exec failed: exec failed: exec: "sh": executable file not found in $PATH: unknown'
    assert service.state(inspected(log(output, -1))).shell_missing
    assert not service.state(inspected(log("psql: command not found", 127))).shell_missing


SLOT = Limits(2.0, 4 << 30, 1000)


def test_a_job_and_its_services_share_one_slot() -> None:
    """Half each where the job asks for nothing; else it has what it asks for, and they divide the rest."""
    job, each = parted(Limits(), SLOT, 2)
    assert (job, each) == (Limits(1.0, 2 << 30, 500), Limits(0.5, 1 << 30, 250))
    job, each = parted(Limits(cpu=1.5, memory=3 << 30), SLOT, 1)
    assert (job, each) == (Limits(1.5, 3 << 30, 500), Limits(0.5, 1 << 30, 500))
    assert parted(Limits(), Limits(), 3) == (Limits(), Limits())


@given(st.integers(1, 20), st.floats(0.1, 4), st.integers(1 << 20, 8 << 30), st.integers(1, 2000))
def test_together_they_never_have_more_than_the_slot(services: int, cpu: float, memory: int, pids: int) -> None:
    """Whatever the job asks for: its neighbours on the machine have their own."""
    try:
        job, each = parted(Limits(cpu, memory, pids), SLOT, services)
    except NoRoomError as error:
        assert "\n" not in str(error)  # noqa: PT017 - refused is fine too
        return
    for name in ("cpu", "memory", "pids"):
        assert getattr(each, name) >= LEAST[name] * 0.999999
        assert getattr(job, name) + services * getattr(each, name) <= getattr(SLOT, name) * 1.000001


def test_a_job_that_asks_for_the_whole_slot_leaves_its_services_the_least_that_they_need() -> None:
    """The coordinator gave it the slot because that has what it asks for: it is not refused for its services."""
    job, each = parted(SLOT, SLOT, 2)
    assert (each.cpu, each.memory, each.pids) == (pytest.approx(0.05), 16 << 20, 16)
    assert (job.cpu, job.memory, job.pids) == (pytest.approx(1.9), (4 << 30) - (32 << 20), 968)
    job, each = parted(Limits(), Limits(0.4, 64 << 20, 64), 3)
    assert (job.memory, each.memory) == (16 << 20, 16 << 20)


def test_a_slot_without_room_for_the_services_is_refused() -> None:
    """One sentence with the mend, not a database that is killed before it is ready."""
    with pytest.raises(
        NoRoomError, match=r"3 services .* it has 63 MiB, and each of them needs 16 MiB; use .* larger slots"
    ):
        parted(Limits(), Limits(2.0, 63 << 20, 1000), 3)


def test_services_need_docker_whoever_asks() -> None:
    """No other sandbox holds containers, and the user's own code does not lose them by falling back to the host."""
    able = {kind: Ability(kind, frozenset(Network), hard_limits=True) for kind in SandboxKind}
    offer = Offer(able, "debian:12", host_allowed=True)
    assert choose(Wish(SandboxKind.ANY, services=True), offer).image == "debian:12"
    for kind in (SandboxKind.BUBBLEWRAP, SandboxKind.HOST):
        with pytest.raises(Exception, match="they need docker"):
            choose(Wish(kind, services=True, own_code=True), offer)
    without = Offer({SandboxKind.BUBBLEWRAP: able[SandboxKind.BUBBLEWRAP]}, "debian:12", host_allowed=True)
    with pytest.raises(Exception, match="this agent has no docker sandbox"):
        choose(Wish(SandboxKind.ANY, services=True, own_code=True), without)
