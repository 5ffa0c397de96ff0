"""What a fake coordinator does with a run that is created: it passes, fails, or waits to be canceled."""

from __future__ import annotations

from headrace.v1 import common_pb2, run_pb2
from tests.harness.fake_coordinator import FakeCoordinator

PIPELINE = "name: demo\nstages: [{name: test, jobs: {unit: {steps: [{run: 'true'}]}}}]\n"
T0 = 1_700_000_000_000


def attempt(state, **values):
    found = run_pb2.Attempt(
        id=1, state=state, agent="one", leased_ms=T0 + 200, started_ms=T0 + 300, sandbox_ms=40, checkout_ms=50,
        steps_ms=1000, **values,
    )  # fmt: skip
    setattr(found, "try", 1)
    return found


def running(fake: FakeCoordinator, run_id: int) -> None:
    fake.runs[run_id].stages.add(index=0, name="test")
    fake.set_job(run_id, "unit", state=common_pb2.JOB_STATE_QUEUED, queued_ms=T0 + 100)
    fake.set_run(run_id, state=common_pb2.RUN_STATE_RUNNING, started_ms=T0 + 300)
    fake.set_job(
        run_id, "unit", state=common_pb2.JOB_STATE_RUNNING, started_ms=T0 + 300,
        attempts=[attempt(common_pb2.ATTEMPT_STATE_RUNNING)],
    )  # fmt: skip
    fake.open_section(run_id, "unit", "step", "pytest -q", step=0)


def passes(fake: FakeCoordinator, run_id: int) -> None:
    running(fake, run_id)
    fake.write(run_id, "unit", b"collecting\npart")
    fake.write(run_id, "unit", b"ial line\n\x1b[32mgreen\x1b[0m\nno newline")
    fake.keep(run_id, "dist", {"a.whl": b"wheel"}, job="unit")
    ended(fake, run_id, common_pb2.JOB_STATE_PASSED, common_pb2.RUN_STATE_PASSED, common_pb2.ATTEMPT_STATE_PASSED)


def fails(fake: FakeCoordinator, run_id: int) -> None:
    running(fake, run_id)
    for number in range(30):
        fake.write(run_id, "unit", b"line %d\n" % number)
    step = common_pb2.StepResult(number=0, name="pytest -q", cause=common_pb2.CAUSE_STEP_FAILED, exit_code=3)
    ended(
        fake, run_id, common_pb2.JOB_STATE_FAILED, common_pb2.RUN_STATE_FAILED, common_pb2.ATTEMPT_STATE_FAILED,
        steps=[step], cause=common_pb2.CAUSE_STEP_FAILED,
    )  # fmt: skip


def until_canceled(fake: FakeCoordinator, run_id: int) -> None:
    running(fake, run_id)
    fake.write(run_id, "unit", b"working\n")
    fake.wait_for(lambda: bool(fake.requests("Cancel")), 30)
    ended(
        fake, run_id, common_pb2.JOB_STATE_CANCELED, common_pb2.RUN_STATE_CANCELED,
        common_pb2.ATTEMPT_STATE_CANCELED, cause=common_pb2.CAUSE_CANCELED,
    )  # fmt: skip


def until_killed(fake: FakeCoordinator, run_id: int) -> None:
    running(fake, run_id)
    fake.write(run_id, "unit", b"working\n")
    fake.wait_for(lambda: len(fake.requests("Cancel")) > 1, 30)
    ended(
        fake, run_id, common_pb2.JOB_STATE_CANCELED, common_pb2.RUN_STATE_CANCELED,
        common_pb2.ATTEMPT_STATE_CANCELED, cause=common_pb2.CAUSE_CANCELED,
    )  # fmt: skip


def ended(fake, run_id, job, run, attempt_state, *, cause=0, **values) -> None:
    fake.seal(run_id, "unit")
    fake.set_job(
        run_id, "unit", state=job, cause=cause, ended_ms=T0 + 1300,
        attempts=[attempt(attempt_state, ended_ms=T0 + 1300, cause=cause, **values)],
    )  # fmt: skip
    fake.set_run(run_id, state=run, ended_ms=T0 + 1500)
