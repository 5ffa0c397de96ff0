"""Which steps of a job run, and what they see: a real agent, supervisor and bubblewrap."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from headrace.v1 import agent_pb2
from headrace.v1 import common_pb2 as pb
from tests.harness.agent_records import kept, rewrite, until_kept
from tests.integration.agent.conftest import Agent, job
from tests.integration.agent.other_side import OtherSide


def step(number: int, script: str, condition: str = "", **fields: object) -> pb.Step:
    found = pb.Step(number=number, id=f"s{number}", name=f"step {number}", **fields)  # type: ignore[arg-type]
    found.run.script = script
    if condition:
        found.condition.CopyFrom(expression(condition))
    return found


def expression(text: str) -> pb.Expression:
    return pb.Expression(text=text, place="headrace.yml:9:5")


def template(*parts: str) -> pb.Template:
    """Texts and expressions in turn."""
    return pb.Template(
        parts=[
            pb.TemplatePart(expression=expression(part)) if n % 2 else pb.TemplatePart(text=part)
            for n, part in enumerate(parts)
            if part
        ]
    )


async def ended(side: OtherSide, attempt: int) -> agent_pb2.Ended:
    """Its outcome, once the whole log is there too."""
    await side.until(lambda: attempt in side.ended)
    found = side.ended[attempt]
    await side.until(lambda: len(side.logs[attempt].records) == found.log_records["main"])
    return found


async def test_conditions_see_what_earlier_steps_came_to_and_said(agent: Agent, side: OtherSide) -> None:
    """Outcomes, outputs, environment, needs and the facts of the run: all that the language promises."""
    await agent.start()
    steps = [
        step(0, 'echo v=1.2 >> "$HEADRACE_OUTPUT"; echo SAID=yes >> "$HEADRACE_ENV"'),
        step(1, "echo one", "steps.s0.outcome == 'passed' && steps.s0.outputs.v == '1.2' && env.SAID == 'yes'"),
        step(2, "echo two", "branch == 'main'"),
        step(3, "echo three", "needs.wheel.outputs.n == 3 && env.JOB == 'of the job'"),
        step(4, "exit 7", allow_failure=True),
        step(5, "echo five; exit 3", "steps.s4.outcome == 'failed'"),
        step(6, "echo six"),
        step(7, "echo seven", "failure()"),
        step(8, 'echo "$LATE"', "always()"),
    ]
    steps[8].run.late_env["LATE"].CopyFrom(template("v", "steps.s0.outputs.v", " of ", "hash('*.none')", "nothing"))
    needs = json.dumps({"wheel": {"outcome": "passed", "outputs": {"n": 3}}}).encode()
    spec = job(None, steps=steps, context=json.dumps({"branch": "topic"}).encode(), env={"JOB": "of the job"})
    attempt = side.give(spec, needs=needs)
    told = await ended(side, attempt)
    assert [s.skipped for s in told.steps] == [n in (2, 6) for n in range(9)], told
    assert told.steps[2].sentence == (
        "skipped: `success() && (branch == 'main')` is false: success() is true, branch is \"topic\""
    )
    assert told.steps[6].sentence == "skipped: `success()` is false because step `step 5` failed"
    assert (told.steps[4].allowed, told.steps[4].exit_code, told.steps[5].allowed) == (True, 7, False)
    assert (told.state, told.cause) == (pb.ATTEMPT_STATE_FAILED, pb.CAUSE_STEP_FAILED)
    assert told.sentence.startswith("step 'step 5'")
    assert "v1.2 of nothing\n" in side.logs[attempt].text


async def test_a_condition_that_cannot_be_computed_fails_the_job_and_names_its_place(
    agent: Agent, side: OtherSide
) -> None:
    """Neither running nor skipping would be right; steps that clean up still run."""
    await agent.start()
    steps = [step(0, "true"), step(1, "echo never", "steps.s0.outputs.nope == ''"), step(2, "echo clean", "always()")]
    attempt = side.give(job(None, steps=steps))
    told = await ended(side, attempt)
    assert told.cause == pb.CAUSE_EXPRESSION_FAILED
    assert "headrace.yml:9:5: `steps.s0.outputs.nope == ''` cannot be computed: there is no `nope`" in told.sentence
    assert side.logs[attempt].text.count("headrace.yml:9:5") == 1
    assert "clean\n" in side.logs[attempt].text
    assert "never" not in side.logs[attempt].text


async def test_a_step_is_tried_again_and_each_try_has_its_line(agent: Agent, side: OtherSide) -> None:
    """A flaky download should not cost a job; what the first try wrote is not what the second says."""
    await agent.start()
    script = 'echo n=$(cat n 2>/dev/null) >> "$HEADRACE_OUTPUT"; echo x >> n; [ $(wc -l < n) = 3 ]'
    steps = [
        step(0, script, retry=pb.StepRetry(max=3, delay_ms=50, backoff=2)),
        step(1, "exit 5", retry=pb.StepRetry(max=1), allow_failure=True),
    ]
    attempt = side.give(job(None, steps=steps, outputs={"n": template("", "steps.s0.outputs.n")}))
    told = await ended(side, attempt)
    assert told.state == pb.ATTEMPT_STATE_PASSED, told
    assert [(s.tries, s.exit_code, s.allowed) for s in told.steps] == [(3, 0, False), (2, 5, True)]
    assert json.loads(told.outputs) == {"n": "x x"}
    titles = [title for kind, title in side.logs[attempt].sections if kind == "step"]
    assert titles == ["step 0", "step 0 (try 2 of 4)", "step 0 (try 3 of 4)", "step 1", "step 1 (try 2 of 2)"]
    opened = [record.opened for record in side.logs[attempt].records if record.WhichOneof("what") == "opened"]
    assert [each.step for each in opened if each.kind == "step"] == [0, 0, 0, 1, 1]
    assert "headrace: try 2 of 4, after exit code 1\n" in side.logs[attempt].text


async def test_after_a_cancel_the_steps_that_ask_for_it_clean_up(agent: Agent, side: OtherSide) -> None:
    """A test cluster has to be taken down, whoever stopped the job."""
    await agent.start()
    steps = [
        step(0, "echo begun; sleep 60", retry=pb.StepRetry(max=3)),
        step(1, "echo never"),
        step(2, "echo never", "failure()"),
        step(3, "echo took it down", "canceled() && steps.s0.outcome == 'canceled'"),
        step(4, "echo and tidied", "always()"),
    ]
    attempt = side.give(job(None, steps=steps))
    await side.until(lambda: attempt in side.logs and "begun" in side.logs[attempt].text)
    side.cancel(attempt)
    told = await ended(side, attempt)
    assert (told.state, told.sentence) == (pb.ATTEMPT_STATE_CANCELED, "canceled by ana")
    assert [s.skipped for s in told.steps] == [False, True, True, False, False]
    assert "the run was canceled" in told.steps[1].sentence
    assert "took it down\n" in side.logs[attempt].text
    assert "and tidied\n" in side.logs[attempt].text
    assert "never" not in side.logs[attempt].text


async def test_a_second_cancel_kills_what_cleans_up(agent: Agent, side: OtherSide) -> None:
    """Whoever asks twice means it."""
    await agent.start()
    steps = [
        step(0, "echo begun; sleep 60"),
        step(1, "echo cleaning; sleep 60", "always()"),
        step(2, "true", "always()"),
    ]
    attempt = side.give(job(None, steps=steps))
    await side.until(lambda: attempt in side.logs and "begun" in side.logs[attempt].text)
    side.cancel(attempt)
    await side.until(lambda: "cleaning" in side.logs[attempt].text)
    side.cancel(attempt, kill=True)
    told = await ended(side, attempt)
    assert told.state == pb.ATTEMPT_STATE_CANCELED
    assert told.steps[2].skipped


async def test_a_job_out_of_time_still_cleans_up(agent: Agent, side: OtherSide) -> None:
    """Its time is over, and not what it has made elsewhere."""
    await agent.start()
    steps = [step(0, "sleep 60"), step(1, "sleep 1; echo cleaned", "always()"), step(2, "echo never", "canceled()")]
    attempt = side.give(job(None, steps=steps, timeout_ms=700))
    told = await ended(side, attempt)
    assert told.cause == pb.CAUSE_JOB_TIMED_OUT
    assert [s.skipped for s in told.steps] == [False, False, True]
    assert "cleaned\n" in side.logs[attempt].text


async def test_outputs_of_a_job_are_told_with_its_outcome(agent: Agent, side: OtherSide) -> None:
    """They keep their types; what a failed job can still compute is told, and of a passed one all has to be."""
    await agent.start()
    outputs = {"version": template("", "steps.s0.outputs.v"), "all": template("", "[1, true, {'a': env.A}]")}
    first = side.give(job(None, steps=[step(0, 'echo v=1 >> "$HEADRACE_OUTPUT"')], outputs=outputs, env={"A": "a"}))
    told = await ended(side, first)
    assert json.loads(told.outputs) == {"version": "1", "all": [1, True, {"a": "a"}]}
    second = side.give(job(None, steps=[step(0, "true")], outputs=outputs, env={"A": "a"}))
    told = await ended(side, second)
    assert (told.state, told.cause) == (pb.ATTEMPT_STATE_FAILED, pb.CAUSE_EXPRESSION_FAILED)
    assert "output `version`: headrace.yml:9:5: " in told.sentence
    third = side.give(job(None, steps=[step(0, "exit 1")], outputs=outputs, env={"A": "a"}))
    told = await ended(side, third)
    assert told.cause == pb.CAUSE_STEP_FAILED
    assert json.loads(told.outputs) == {"all": [1, True, {"a": "a"}]}


async def test_what_the_agent_evaluates_of_a_job_is_there_before_its_first_step(agent: Agent, side: OtherSide) -> None:
    """Variables over needs; and an image that is no name is refused before an engine sees it."""
    await agent.start()
    late = {"V": template("v", "needs.a.outputs.v")}
    needs = json.dumps({"a": {"outputs": {"v": 3}}}).encode()
    given = {"MATRIX_OS": "trixie"}
    spec = job(None, "echo $V-$MATRIX_OS", late_env=late, given_env=given, env={"MATRIX_OS": "forged"})
    first = side.give(spec, needs=needs)
    assert (await ended(side, first)).state == pb.ATTEMPT_STATE_PASSED
    assert "v3-trixie\n" in side.logs[first].text
    second = side.give(job(None, "true", late_env=late))
    told = await ended(side, second)
    assert told.cause == pb.CAUSE_EXPRESSION_FAILED
    assert not told.steps
    assert "there is no `a`" in side.logs[second].text
    third = side.give(job(None, "true", late_image=template("", "'--privileged'"), sandbox="any"))
    assert (await ended(side, third)).cause == pb.CAUSE_IMAGE_UNAVAILABLE


async def test_what_later_steps_need_to_know_survives_the_agents_death(agent: Agent, side: OtherSide) -> None:
    """Outcomes, outputs and tries are in the record; a step that has begun is not decided anew."""
    await agent.start()
    steps = [
        step(0, 'echo v=1 >> "$HEADRACE_OUTPUT"; exit 3', allow_failure=True),
        step(1, "echo x >> n; [ -f n ] && [ $(wc -l < n) = 2 ] && touch lock && echo begun && sleep 2",
             "hash('lock') == ''", retry=pb.StepRetry(max=1)),
        step(2, "echo last", "steps.s0.outcome == 'failed' && steps.s0.outputs.v == '1'"),
    ]  # fmt: skip
    attempt = side.give(job(None, steps=steps))
    await side.until(lambda: attempt in side.logs and "begun" in side.logs[attempt].text)
    agent.kill()
    await agent.ended()
    await agent.start()
    told = await ended(side, attempt)
    assert told.state == pb.ATTEMPT_STATE_PASSED, told
    assert [(s.allowed, s.tries, s.skipped) for s in told.steps] == [
        (True, 0, False),
        (False, 2, False),
        (False, 0, False),
    ]
    assert side.logs[attempt].text.count("begun") == 1
    assert "last\n" in side.logs[attempt].text


async def test_a_cancel_is_remembered_while_steps_clean_up(agent: Agent, side: OtherSide) -> None:
    """An agent that dies then goes on cleaning, and not with the job."""
    await agent.start()
    steps = [
        step(0, "echo begun; sleep 60"),
        step(1, "echo cleaning; sleep 2; echo cleaned", "always()"),
        step(2, "echo never"),
        step(3, "echo tidied", "canceled()"),
    ]
    attempt = side.give(job(None, steps=steps))
    await side.until(lambda: attempt in side.logs and "begun" in side.logs[attempt].text)
    side.cancel(attempt)
    await side.until(lambda: "cleaning" in side.logs[attempt].text)
    agent.kill()
    await agent.ended()
    await agent.start()
    told = await ended(side, attempt)
    assert (told.state, told.sentence) == (pb.ATTEMPT_STATE_CANCELED, "canceled by ana")
    assert [s.skipped for s in told.steps] == [False, False, True, False]
    assert "cleaned\n" in side.logs[attempt].text
    assert "tidied\n" in side.logs[attempt].text


async def test_reports_of_tests_are_read_whatever_the_job_came_to(agent: Agent, side: OtherSide) -> None:
    """A failed job is the one whose tests people ask about; a broken report is told and fails nothing."""
    await agent.start()
    good = '<testsuite><testcase name="a" time="1"/><testcase name="b"><failure message="no"/></testcase></testsuite>'
    script = (
        f"mkdir r; echo '{good}' > r/good.xml; echo '<!DOCTYPE a><a/>' > r/evil.xml; ln -s /etc/passwd r/x.xml; exit 1"
    )
    first = side.give(job(None, script, junit=["r/*.xml"]))
    told = await ended(side, first)
    assert told.cause == pb.CAUSE_STEP_FAILED
    assert (told.tests.tests, told.tests.failures, told.tests.duration_ms) == (2, 1, 1000)
    assert [(each.name, each.message) for each in told.tests.failed] == [("b", "no")]
    assert list(told.tests.problems) == ["r/evil.xml: it has a document type or entities, and a report needs none"]
    assert "2 tests: 1 failures, 0 errors, 0 skipped\nr/evil.xml: it has" in side.logs[first].text
    second = side.give(job(None, "true", junit=["r/*.xml"]))
    told = await ended(side, second)
    assert told.state == pb.ATTEMPT_STATE_PASSED
    assert not told.HasField("tests")
    assert "no file matches r/*.xml\n" in side.logs[second].text


async def test_the_log_of_the_step_that_failed_is_searched_for_the_patterns_of_the_job(
    agent: Agent, side: OtherSide
) -> None:
    """A retry rule may name one; what other steps wrote is no reason to try again."""
    await agent.start()
    patterns = ["connection reset", "of another", "[0-9]{3} left", "(unreadable"]
    steps = [
        step(0, "echo of another; exit 1", allow_failure=True),
        step(1, "echo 'read: connection reset'; echo 100 left; exit 4"),
        step(2, "echo of another", "always()"),
    ]
    first = side.give(job(None, steps=steps, log_patterns=patterns))
    told = await ended(side, first)
    assert list(told.log_patterns) == ["connection reset", "[0-9]{3} left"]
    second = side.give(job(None, "echo connection reset", log_patterns=patterns))
    assert not (await ended(side, second)).log_patterns


async def test_each_cache_is_a_miss_under_its_key(agent: Agent, side: OtherSide, repository: tuple[Path, str]) -> None:
    """Keys can be looked at before there are caches; one that cannot be computed costs only time, some day."""
    await agent.start()
    digest = hashlib.sha256(b"hello from the repository\n").digest()
    digest = hashlib.sha256(hashlib.sha256(b"hello.txt").digest() + digest).digest()
    caches = [
        pb.CacheSpec(key=template("pip-", "branch", "-", "hash('hello*', '*.lock')"), paths=["~/.cache"]),
        pb.CacheSpec(key=template("", "needs.nope.outcome"), paths=["x"]),
    ]
    attempt = side.give(job(repository, "true", caches=caches, context=b'{"branch": "main"}'))
    told = await ended(side, attempt)
    assert told.state == pb.ATTEMPT_STATE_PASSED
    log = side.logs[attempt]
    assert f"cache pip-main-{digest.hex()}: a miss (caches are not built yet)\n" in log.text
    assert "cache without a key: headrace.yml:9:5: `needs.nope.outcome` cannot be computed" in log.text
    assert ("cache", "Restore caches") in log.sections


async def test_a_job_gets_what_it_asks_for_or_is_refused(agent: Agent, side: OtherSide) -> None:
    """Amounts are a promise: where nobody can keep it the job says so, and does not run with something else."""
    await agent.start()
    greedy = side.give(job(None, "true", resources=pb.Resources(memory=1 << 50)))
    told = await ended(side, greedy)
    assert (told.cause, told.steps) == (pb.CAUSE_REFUSED, [])
    assert "1,125,899,906,842,624 bytes of memory where a slot has" in told.sentence
    (ability,) = [each for each in side.hellos[0].sandboxes if each.kind == "bubblewrap"]
    script = "head -c 300000000 /dev/zero | tail -c 290000000 | wc -c"
    modest = side.give(job(None, script, resources=pb.Resources(memory=100 << 20, disk=1 << 30)))
    told = await ended(side, modest)
    if ability.hard_limits:
        assert told.cause == pb.CAUSE_OOM, told
        assert "1,073,741,824 bytes of disk are asked for: that is not enforced\n" in side.logs[modest].text
    else:
        assert "cannot enforce limits on this agent" in told.sentence


async def test_steps_that_clean_up_have_five_minutes_in_all(agent: Agent, side: OtherSide) -> None:
    """A cancel must end some day, and the time does not begin anew with the agent."""
    await agent.start()
    steps = [
        step(0, "echo begun; sleep 60"),
        step(1, "echo cleaning; sleep 2; echo cleaned", "always()"),
        step(2, "echo never", "always()"),
    ]
    attempt = side.give(job(None, steps=steps))
    await side.until(lambda: attempt in side.logs and "begun" in side.logs[attempt].text)
    side.cancel(attempt)
    await side.until(lambda: "cleaning" in side.logs[attempt].text)
    agent.kill()
    await agent.ended()
    assert kept(agent.data / "attempts", attempt)["cleaning_until_boot_ms"] > 0
    rewrite(agent.data / "attempts", attempt, lambda written: written | {"cleaning_until_boot_ms": 1})
    await agent.start()
    told = await ended(side, attempt)
    assert told.state == pb.ATTEMPT_STATE_CANCELED
    assert "cleaned\n" in side.logs[attempt].text
    assert told.steps[2].sentence == (
        "skipped: the 5 min that steps have after a cancel or the end of the job's time are over"
    )


async def test_a_step_that_has_begun_is_not_decided_anew(agent: Agent, side: OtherSide) -> None:
    """Its own doings may have made its condition false: an agent that was started again waits for it all the same."""
    await agent.start()
    steps = [step(0, "touch lock; echo begun; sleep 2; echo done", "hash('lock') == ''")]
    attempt = side.give(job(None, steps=steps))
    await side.until(lambda: attempt in side.logs and "begun" in side.logs[attempt].text)
    agent.kill()
    await agent.ended()
    await agent.start()
    told = await ended(side, attempt)
    assert (told.state, told.steps[0].skipped) == (pb.ATTEMPT_STATE_PASSED, False)
    assert "done\n" in side.logs[attempt].text


async def test_a_cancel_between_two_tries_ends_the_wait_and_not_the_step_that_cleans_up(
    agent: Agent, side: OtherSide
) -> None:
    """Nothing runs that could be ended: what begins next must not be taken for it."""
    await agent.start()
    steps = [
        step(0, "echo begun; exit 3", retry=pb.StepRetry(max=5, delay_ms=3_600_000)),
        step(1, "echo cleaning; sleep 1; echo cleaned", "always()"),
    ]
    attempt = side.give(job(None, steps=steps, timeout_ms=7_200_000))
    await side.until(lambda: attempt in side.logs and "begun" in side.logs[attempt].text)
    await until_kept(agent.data / "attempts", attempt, lambda record: record["trying"])
    side.cancel(attempt)
    told = await ended(side, attempt)
    assert (told.state, told.steps[0].exit_code, told.steps[0].tries) == (pb.ATTEMPT_STATE_CANCELED, 3, 1)
    assert told.steps[1].cause == pb.CAUSE_UNSPECIFIED, told
    assert "cleaned\n" in side.logs[attempt].text
