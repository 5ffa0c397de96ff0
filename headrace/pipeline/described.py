"""What each key is, in a sentence and an example: the one place that the JSON Schema and the manual are made from."""

# ruff: noqa: E501 - a table reads best with a line for each key

from __future__ import annotations

from typing import Any, NamedTuple


class About(NamedTuple):
    """A key for people."""

    text: str
    example: Any


_ENV = About("variables by name; values are taken as they are written", {"SUITE": "fast"})
_IF = About("an expression; false: it is skipped", "branch == 'main'")
_PATHS = About("globs of paths: a push that changes none of them starts no run", ["src/**"])
_PATHS_IGNORE = About("globs of paths: a push that changes these alone starts no run", ["**/*.md"])

KEYS: dict[str, dict[str, About]] = {
    "a pipeline": {
        "name": About("shown with the run; left out: the file's name", "web"),
        "on": About("which events start a run; left out: runs by hand alone", {"push": {"branches": ["main"]}}),
        "env": _ENV,
        "defaults": About("what holds for every job that says nothing else", {"image": "python:3.12-slim"}),
        "concurrency": About("the group that a run enters before its first job", {"group": "web", "limit": 1}),
        "priority": About("from -10 to 10: runs of more go first", 0),
        "include": About(
            "files of this repository whose `templates`, `env` and `defaults` are shared", [{"local": "ci/shared.yml"}]
        ),
        "templates": About("jobs, or parts of jobs, that others extend", {"python": {"image": "python:3.12"}}),
        "stages": About(
            "the stages, in order; the jobs of a stage run side by side",
            [{"name": "build", "jobs": {"wheel": {"steps": [{"run": "make"}]}}}],
        ),
    },
    "an include": {"local": About("a path from the root of the repository", "ci/shared.yml")},
    "`on`": {
        "push": About("pushes; nothing behind it: every push", {"branches": ["main", "release/*"]}),
        "pull_request": About("pull requests", {"branches": ["main"]}),
        "schedule": About("times", [{"cron": "0 3 * * 1-5", "timezone": "America/Bogota"}]),
        "manual": About("runs by hand, and their parameters", {"parameters": {"target": {"default": "staging"}}}),
    },
    "`push`": {
        "branches": About("globs of branches; left out, and without `tags`: any", ["main", "release/*"]),
        "tags": About("globs of tags", ["v*"]),
        "paths": _PATHS,
        "paths-ignore": _PATHS_IGNORE,
    },
    "`pull_request`": {
        "branches": About("globs of the branches that it is to be merged into; left out: any", ["main"]),
        "paths": _PATHS,
        "paths-ignore": _PATHS_IGNORE,
    },
    "a schedule": {
        "cron": About("minute, hour, day of the month, month, day of the week (0 and 7: Sunday)", "0 3 * * 1-5"),
        "timezone": About("of the clock that it goes by; left out: `UTC`", "America/Bogota"),
        "branch": About("the branch that is built; left out: the repository's default", "main"),
    },
    "`manual`": {
        "parameters": About("by name; a job finds them as `PARAM_<NAME>`", {"target": {"default": "staging"}})
    },
    "a parameter": {
        "type": About("`string` (left out), `choice`, `bool`, `int` or `double`", "choice"),
        "options": About("what a `choice` may be", ["staging", "production"]),
        "default": About("what it is when nobody says; left out: it has to be given", "staging"),
        "description": About("for whoever starts the run", "Where it goes"),
    },
    "`defaults`": {
        "image": About("the container image of jobs", "python:3.12-slim"),
        "pool": About("the pool of jobs", "default"),
        "timeout": About("of each whole job; left out: 1h", "30m"),
        "shell": About("of `run:` steps: `bash`, `sh` or `python`", "bash"),
    },
    "a stage": {
        "name": About("its name", "build"),
        "jobs": About("jobs by name", {"wheel": {"steps": [{"run": "make"}]}}),
        "env": _ENV,
        "environment": About(
            "the deploy target that its jobs release to: they start at most once",
            {"name": "staging", "url": "https://staging.example.com"},
        ),
        "if": _IF,
        "approval": About(
            "a person's decision that it waits for", {"from": ["role:maintainer"], "message": "Ship it?"}
        ),
    },
    "a fragment": {
        "stages": About(
            "stages that are added behind the present one",
            [{"name": "parts", "jobs": {"left": {"steps": [{"run": "make"}]}}}],
        ),
        "stage": About("the present or a later stage, to which `jobs` are added", "test"),
        "jobs": About("jobs by name, for `stage`", {"left": {"steps": [{"run": "make left"}]}}),
    },
    "`environment`": {
        "name": About("its name", "staging"),
        "url": About("where it can be seen", "https://staging.example.com"),
    },
    "`approval`": {
        "from": About("who may decide: `role:NAME`, `user:NAME`; left out: anybody", ["role:maintainer", "user:ana"]),
        "count": About("how many have to; left out: 1", 1),
        "timeout": About("when it is too late, and the stage is canceled; left out: 3d", "3d"),
        "message": About("what they are asked", "Ship ${{ outputs.wheel.version }}?"),
    },
    "a job": {
        "needs": About("jobs that it waits for; `[]`: none; left out: all jobs of all earlier stages", ["wheel"]),
        "steps": About("what it does, in order, in one sandbox and one workspace", [{"run": "make"}]),
        "env": _ENV,
        "image": About("the container image: such a job runs in docker", "python:3.12"),
        "sandbox": About(
            "`docker`, `bubblewrap` or `host`; left out: bubblewrap where the agent has it, else docker", "docker"
        ),
        "network": About("what it may reach: `full` (left out), `none`, or `services`: its own services alone", "none"),
        "pool": About("the agents that may take it; left out: `default`", "default"),
        "requires": About("labels that the agent must have", {"arch": "arm64"}),
        "timeout": About("of the whole job, at most 30d; left out: 1h", "20m"),
        "grace": About("between TERM and KILL when it is canceled or out of time; left out: 10s", "30s"),
        "artifacts": About("what it keeps", [{"name": "dist", "paths": ["dist/*.whl"]}]),
        "checkout": About("`false`: no checkout; else how much of the history, and what else", {"depth": 50}),
        "matrix": About(
            "a job for each combination of values; a list may come from an expression, also from outputs of `needs`",
            {"python": ["3.11", "3.12"], "part": "${{ json(needs.list.outputs.parts) }}"},
        ),
        "parallel": About("copies of it (of each cell), told apart by `shard.index` from 1 to `shard.total`", 3),
        "if": _IF,
        "allow_failure": About(
            "its failure leaves the run passed, with a warning", "${{ matrix.experimental == true }}"
        ),
        "retry": About("how often it is tried again, and after what", {"max": 2, "on": ["lost", "exit:137"]}),
        "outputs": About(
            "values for later jobs, evaluated when its steps are done", {"version": "${{ steps.ver.outputs.version }}"}
        ),
        "services": About("containers beside it, by host name", {"db": {"image": "postgres:16"}}),
        "cache": About(
            "files that a later job may reuse", [{"key": "pip-${{ hash('requirements*.txt') }}", "paths": [".venv"]}]
        ),
        "secrets": About("names of the project's secrets that it is given", ["INDEX_TOKEN"]),
        "resources": About(
            "what it asks for; left out: one slot's share, or half of it beside services", {"cpu": 2, "memory": "4GiB"}
        ),
        "concurrency": About("the group that it enters when it is otherwise ready", {"group": "db", "limit": 1}),
        "reports": About("what it says of its tests", {"junit": ["report.xml"]}),
        "extends": About("templates that it is built on, the later over the earlier; its own keys win", ["python"]),
    },
    "a step": {
        "run": About("a script; only the cell's own `matrix.*` and `shard.*` may stand in it", 'pytest -k "$SUITE"'),
        "use": About("`artifact/NAME`: brings an artifact of this run", "artifact/dist"),
        "path": About("where in the workspace `use` puts it; left out: its root", "in"),
        "id": About("what expressions call it", "tests"),
        "name": About("the title of its log; left out: the first line of the script", "tests"),
        "env": _ENV,
        "workdir": About("a folder in the workspace", "src"),
        "shell": About("`bash`, `sh` or `python`; left out: bash where the sandbox has it, else sh", "bash"),
        "timeout": About("of the step; left out: the job's alone", "10m"),
        "if": About("an expression; left out: `success()`", "always()"),
        "allow_failure": About("its failure does not count", example=True),
        "retry": About("how often it is tried again", {"max": 1}),
        "image": About("the container image of the step", "debian"),
    },
    "an artifact": {
        "name": About("one producer in a run; that of a matrix job holds what tells its cells apart", "dist"),
        "paths": About("globs in the workspace; a folder: all below it", ["dist/*.whl"]),
        "keep": About("for how long; left out: 30d", "30d"),
        "when": About("after which outcome: `passed` (left out), `failed` or `always`", "always"),
        "if_empty": About("what no file means: `fail` (left out) or `warn`", "warn"),
    },
    "`checkout`": {
        "depth": About("commits of history; left out, or 0: all", 50),
        "submodules": About("`true`: with submodules, nested ones too, each with as much history", example=True),
        "lfs": About("`true`: with the large files of git LFS instead of their pointers", example=True),
    },
    "a service": {
        "image": About("its container image", "postgres:16"),
        "env": _ENV,
        "ready": About(
            "a command that succeeds in it once it is ready; left out: it is when it runs", "pg_isready -U postgres"
        ),
        "timeout": About("until it has to be ready; left out: 60s", "60s"),
    },
    "a cache": {
        "key": About(
            "what it is kept under; an equal key is never written twice", "pip-${{ hash('requirements*.txt') }}"
        ),
        "restore": About("beginnings of keys that will do, in order", ["pip-"]),
        "paths": About("in the workspace or below `~/`", ["~/.cache/pip", ".venv"]),
        "save": About("after which outcome: `passed` (left out) or `always`", "always"),
    },
    "`resources`": {
        "cpu": About("cores", 2),
        "memory": About("its bound", "4GiB"),
        "disk": About("what it may write", "20GiB"),
        "pids": About("processes and threads", 2048),
    },
    "`reports`": {"junit": About("globs of JUnit files", ["report.xml"])},
    "`retry`": {
        "max": About("tries beyond the first, at most 10", 2),
        "on": About(
            "`failed`, `timed_out`, `oom`, `service_failed`, `lost`, `errored`, `exit:140-150`, `log:/pattern/`; left out: whatever it "
            "did itself, and its services",
            ["lost", "exit:140-150"],
        ),
        "delay": About("before the second try; left out: none", "10s"),
        "backoff": About("what each delay is multiplied by for the next; left out: 1", 2),
    },
    "`concurrency`": {
        "group": About("its name", "web-${{ branch }}"),
        "limit": About("how many may be in; left out: 1", 1),
        "when_full": About("`queue` (left out), `cancel-older` or `cancel-newer`", "cancel-older"),
    },
}
