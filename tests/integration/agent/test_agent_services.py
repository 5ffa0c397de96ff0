"""Services beside a job: made, waited for, told of and taken away by a real agent on a real engine."""

from __future__ import annotations

import contextlib
import os
import re
import signal

import docker
import pytest

from headrace.v1 import common_pb2 as pb
from tests.harness import images
from tests.integration.agent.conftest import Agent, job, supervisors
from tests.integration.agent.other_side import OtherSide

pytestmark = [pytest.mark.root, pytest.mark.docker]

PING = "redis-cli ping | grep PONG"


@pytest.fixture(scope="session")
def redis(engine_url: str) -> str:
    """Debian with a Redis that listens to everybody: the job's image too, for its client."""
    command = '["redis-server", "--protected-mode", "no", "--bind", "0.0.0.0", "--dir", "/data"]'
    base = images.debian(engine_url, "redis-server")
    facts = {"ENV": "FROM_IMAGE=kept", "VOLUME": "/data", "USER": "redis", "CMD": command}
    return images.variant(engine_url, "headrace-test/redis:latest", base, facts)


def with_services(image: str, *scripts: str, services: list[pb.Service], **fields: object) -> pb.JobSpec:
    """A job in docker with these services."""
    return job(None, *scripts, image=image, sandbox="docker", services=services, **fields)


async def outcome(side: OtherSide, attempt: int) -> tuple[pb.Cause.ValueType, str, str]:
    """Cause, sentence and whole log of an attempt, once all of it is there."""
    await side.until(lambda: attempt in side.ended, 60)
    ended = side.ended[attempt]
    await side.until(lambda: len(side.logs[attempt].records) == ended.log_records["main"])
    return ended.cause, ended.sentence, side.logs[attempt].text


async def test_a_step_speaks_with_a_service_by_its_name(dockered: Agent, side: OtherSide, redis: str) -> None:
    """The point of it all: the service is ready before the first step, and gone after the last."""
    await dockered.start()
    db = pb.Service(name="db", image=redis, ready=PING, timeout_ms=30_000, env={"PASSWORD": "of-the-service"})
    second = pb.Service(name="other-db", image=redis, ready="redis-cli -h db ping", timeout_ms=30_000)
    script = "redis-cli -h db set made by-the-job; redis-cli -h db get made; redis-cli -h other-db ping"
    for network in ("none", "full"):
        attempt = side.give(with_services(redis, script, services=[db, second], network=network))
        cause, sentence, log = await outcome(side, attempt)
        assert (cause, sentence) == (pb.CAUSE_UNSPECIFIED, ""), log
        assert "OK\nby-the-job\nPONG\n" in log
        assert f"db: image {redis}, started\n" in log
        assert re.search(r"other-db: ready after [0-9.]+ s \([0-9.]+ cores, [0-9,]+ MiB\)\n", log)
        assert "of-the-service" not in log + dockered.log
        kinds = [kind for kind, _ in side.logs[attempt].sections]
        assert kinds == ["setup", "checkout", "services", "step", "cleanup"]


async def test_a_job_that_asks_for_the_whole_slot_is_not_refused_for_its_services(
    dockered: Agent, side: OtherSide, redis: str
) -> None:
    """It was matched by what it asks for alone; its service has the least there is, which is enough for a small one."""
    await dockered.start()
    share = side.hellos[-1].slot_share
    whole = pb.Resources(cpu=share.cpu, memory=share.memory)
    db = pb.Service(name="db", image=redis, ready=PING, timeout_ms=30_000)
    attempt = side.give(with_services(redis, "redis-cli -h db ping", services=[db], resources=whole))
    cause, sentence, log = await outcome(side, attempt)
    assert (cause, sentence) == (pb.CAUSE_UNSPECIFIED, ""), log
    assert "(0.05 cores, 16 MiB)\n" in log


async def test_a_service_that_ends_at_once_is_named_with_its_exit_code_and_its_last_words(
    dockered: Agent, side: OtherSide, redis: str, engine_url: str
) -> None:
    """The most common mistake: a variable that the image wants is missing."""
    command = '["sh", "-c", "echo PASSWORD is missing; exit 7"]'
    broken = images.variant(engine_url, "headrace-test/broken:latest", redis, {"CMD": command})
    await dockered.start()
    attempt = side.give(with_services(redis, "echo begun", services=[pb.Service(name="db", image=broken, ready=PING)]))
    cause, sentence, log = await outcome(side, attempt)
    assert (cause, sentence) == (pb.CAUSE_SERVICE_FAILED, "service db ended by itself with exit code 7")
    assert "db | PASSWORD is missing\n" in log
    assert "begun" not in log


async def test_a_service_that_does_not_become_ready_fails_the_job_after_its_timeout(
    dockered: Agent, side: OtherSide, redis: str
) -> None:
    """With what its ready command said, and the last of its log."""
    db = pb.Service(name="db", image=redis, ready="echo not yet; exit 1", timeout_ms=2000)
    await dockered.start()
    cause, sentence, log = await outcome(side, side.give(with_services(redis, "echo begun", services=[db])))
    assert cause == pb.CAUSE_SERVICE_FAILED
    assert sentence == "service db was not ready after 2 s"
    assert "db: its `ready` command said: not yet\n" in log
    assert "db | " in log
    assert "Ready to accept connections" in log
    assert "begun" not in log


async def test_a_service_without_a_shell_cannot_be_asked_whether_it_is_ready(
    dockered: Agent, side: OtherSide, redis: str, engine_url: str
) -> None:
    """One sentence, at once, instead of a timeout."""
    bare = images.bare(engine_url)
    await dockered.start()
    attempt = side.give(with_services(redis, "true", services=[pb.Service(name="db", image=bare, ready="true")]))
    cause, sentence, _ = await outcome(side, attempt)
    assert (cause, "has no sh" in sentence) == (pb.CAUSE_SERVICE_FAILED, True), sentence


async def test_an_image_of_a_service_that_cannot_be_had_is_named(dockered: Agent, side: OtherSide, redis: str) -> None:
    """A mistyped image, with the service that wants it."""
    await dockered.start()
    missing = pb.Service(name="db", image="localhost:1/no-such/image:1.0")
    cause, sentence, _ = await outcome(side, side.give(with_services(redis, "true", services=[missing])))
    assert cause == pb.CAUSE_IMAGE_UNAVAILABLE
    assert sentence.startswith("service db: image localhost:1/no-such/image:1.0 cannot be had")


async def test_a_failed_step_is_told_with_the_service_that_ended_before(
    dockered: Agent, side: OtherSide, redis: str
) -> None:
    """Else people look for the mistake in their tests."""
    await dockered.start()
    db = pb.Service(name="db", image=redis, ready=PING)
    stop = "redis-cli -h db shutdown nosave || true"
    failed = side.give(with_services(redis, stop, "redis-cli -h db ping", services=[db]))
    cause, sentence, log = await outcome(side, failed)
    assert cause == pb.CAUSE_SERVICE_FAILED
    assert sentence == "service db ended by itself with exit code 0; step 'step 1': exit code 1"
    assert "db | " in log
    passed = side.give(with_services(redis, stop, "echo done without", services=[db]))
    cause, sentence, log = await outcome(side, passed)
    assert (cause, sentence) == (pb.CAUSE_UNSPECIFIED, "")
    assert "headrace: service db ended by itself with exit code 0\n" in log


async def test_a_killed_agent_leaves_a_job_its_services_and_the_next_one_takes_them_away(
    dockered: Agent, side: OtherSide, redis: str, engine_url: str
) -> None:
    """kill -9 in mid-job: the database is there to the last step; after it nothing is (the fixture looks)."""
    await dockered.start()
    db = pb.Service(name="db", image=redis, ready=PING)
    wait = 'echo begun; while [ "$(redis-cli -h db get go)" != yes ]; do sleep 0.1; done'
    attempt = side.give(with_services(redis, wait, "redis-cli -h db ping", services=[db]))
    await side.until(lambda: attempt in side.logs and "begun\n" in side.logs[attempt].text, 60)
    dockered.kill()
    await dockered.ended()
    await dockered.start()
    with contextlib.closing(docker.APIClient(base_url=engine_url, version="auto")) as client:
        agent = (dockered.data / "instance").read_text().strip()
        (found,) = client.containers(filters={"label": [f"headrace.agent={agent}", "headrace.service=db"]})
        client.exec_start(client.exec_create(found["Id"], ["redis-cli", "set", "go", "yes"]))
    cause, sentence, log = await outcome(side, attempt)
    assert (cause, sentence) == (pb.CAUSE_UNSPECIFIED, "")
    assert log.count("begun\n") == 1
    assert "PONG" in log


async def test_a_lost_supervisor_takes_the_services_with_it(dockered: Agent, side: OtherSide, redis: str) -> None:
    """They are not its children: the agent removes them (the fixture looks)."""
    await dockered.start()
    db = pb.Service(name="db", image=redis, ready=PING)
    attempt = side.give(with_services(redis, "echo begun; sleep 1000", services=[db]))
    await side.until(lambda: attempt in side.logs and "begun\n" in side.logs[attempt].text, 60)
    for pid in supervisors(dockered.data):
        os.kill(pid, signal.SIGKILL)
    await side.until(lambda: attempt in side.ended, 60)
    assert side.ended[attempt].cause == pb.CAUSE_ERRORED


async def test_a_cancel_does_not_wait_for_a_service(dockered: Agent, side: OtherSide, redis: str) -> None:
    """Nor for an agent that was killed while it waited: the next one begins anew, and can be told to stop."""
    await dockered.start()
    db = pb.Service(name="db", image=redis, ready="false", timeout_ms=600_000)
    attempt = side.give(with_services(redis, "true", services=[db]))
    await side.until(lambda: attempt in side.logs and "db: image" in side.logs[attempt].text, 60)
    dockered.kill()
    await dockered.ended()
    await dockered.start()
    await side.until(lambda: side.logs[attempt].text.count("db: image") == 2, 60)
    side.cancel(attempt)
    cause, _, _ = await outcome(side, attempt)
    assert cause == pb.CAUSE_CANCELED


async def test_a_sandbox_that_has_no_containers_refuses_services_in_one_sentence(
    dockered: Agent, side: OtherSide, redis: str
) -> None:
    """The loader says so earlier; an agent does not rely on it."""
    await dockered.start()
    attempt = side.give(job(None, "true", sandbox="bubblewrap", services=[pb.Service(name="db", image=redis)]))
    cause, sentence, _ = await outcome(side, attempt)
    assert (cause, "they need docker" in sentence) == (pb.CAUSE_REFUSED, True)
