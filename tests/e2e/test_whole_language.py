"""One run that uses at once what teams lean on: real containers, a real Redis, a person who approves."""

from __future__ import annotations

import pytest

from tests.harness import images

pytestmark = pytest.mark.timeout(600)

SHOP = """
name: shop
env: {GREETING: hello}
defaults: {image: "IMAGE", shell: bash, timeout: 5m}
templates:
  smoke: {steps: [{use: artifact/dist}, {run: "test -s dist/shop && test -O dist/shop && echo smoked $PART"}]}
stages:
  - name: build
    jobs:
      wheel:
        outputs: {version: "${{ steps.version.outputs.version }}"}
        steps:
          - {id: version, run: 'echo version=1.4 >> "$HEADRACE_OUTPUT"'}
          - run: mkdir dist && echo shop > dist/shop
        artifacts: [{name: dist, paths: [dist]}]
      parts:
        steps:
          - run: |
              for part in left right; do jobs="$jobs $part: {extends: smoke, env: {PART: $part}},"; done
              echo "{stage: test, jobs: {$jobs}}" > "$HEADRACE_PIPELINE"
  - name: test
    jobs:
      unit:
        needs: [wheel]
        matrix: {suite: [fast, slow], db: [1, 2], exclude: [{suite: slow, db: 2}]}
        env: {SUITE: "${{ matrix.suite }}", VERSION: "${{ needs.wheel.outputs.version }}"}
        services: {cache: {image: "REDIS", ready: redis-cli ping}}
        retry: {max: 1, on: ["exit:75"]}
        steps:
          - use: artifact/dist
          - name: tests
            run: |
              test "$VERSION" = 1.4
              if [ "$SUITE" = slow ] && [ "$HEADRACE_ATTEMPT" = 1 ]; then exit 75; fi
              redis-cli -h cache -n ${{ matrix.db }} set suite "$GREETING $SUITE"
              test "$(redis-cli -h cache -n ${{ matrix.db }} get suite)" = "hello $SUITE"
              cat > report.xml <<END
              <testsuite name="$SUITE"><testcase name="keeps" time="0.2"/><testcase name="waits"><skipped/></testcase>
              </testsuite>
              END
        reports: {junit: [report.xml]}
  - name: release
    approval: {message: "Ship ${{ outputs.wheel.version }}?"}
    environment: {name: production, url: "https://shop.example.com"}
    jobs:
      ship:
        needs: [wheel, unit]
        env: {VERSION: "${{ needs.wheel.outputs.version }}"}
        steps: [{use: artifact/dist}, {run: 'echo "shipped $(cat dist/shop) $VERSION"'}]
"""


@pytest.fixture(scope="session")
def shop(docker_engine) -> str:
    """The pipeline, with its images made here."""
    image = images.debian(docker_engine, "redis-server")
    command = '["redis-server", "--save", "", "--bind", "0.0.0.0", "--protected-mode", "no"]'
    redis = images.variant(docker_engine, "headrace-test/redis:latest", image, {"CMD": command})
    return SHOP.replace("IMAGE", image).replace("REDIS", redis)


def test_a_change_goes_the_whole_way(scene, with_docker, shop):
    """Built, tested against a service in three cells, joined by jobs that a step adds, approved, shipped."""
    scene.repository(shop)
    run = scene.start("run").said("headrace approve 1", 300)
    assert "Ship 1.4?" in scene("show").out
    approved = scene("approve", "1", "--comment", "looks right")
    assert approved.code == 0, approved.err
    done = run.end(120)
    assert done.code == 0, done.out + done.err
    assert "ship | shipped shop 1.4\n" in done.out
    assert "left | smoked left\n" in done.out

    jobs = {job["key"]: job for job in scene.json("show", "1")["jobs"]}
    cells = {"unit[suite=fast,db=1]", "unit[suite=fast,db=2]", "unit[suite=slow,db=1]"}
    assert jobs.keys() == {"wheel", "parts", "left", "right", "ship"} | cells
    assert {job["state"] for job in jobs.values()} == {"passed"}
    assert [key for key, job in jobs.items() if len(job["attempts"]) > 1] == ["unit[suite=slow,db=1]"]

    page = scene("show", "1").out
    assert page.count("  2 tests, 1 skipped in 0.2 s\n") == len(cells)
    for line in (
        "stage release: environment production, https://shop.example.com\n  approved by client: looks right\n",
        "  output version = 1.4\n",
        "step 'tests': exit code 75\n  try 2 of 2 passed in ",
    ):
        assert line in page, page
