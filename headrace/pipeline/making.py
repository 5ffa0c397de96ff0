"""From what a record held to a value of the model, one function a record."""

from __future__ import annotations

from headrace.pipeline.model import (
    ApprovalDef,
    ArtifactDef,
    CacheDef,
    ConcurrencyDef,
    Defaults,
    EnvironmentDef,
    FragmentDef,
    JobDef,
    Late,
    Pipeline,
    Placed,
    RetryDef,
    StageDef,
    StepDef,
)
from headrace.pipeline.plan import (
    ArtifactSpec,
    Checkout,
    IfEmpty,
    Network,
    Resources,
    SandboxKind,
    Save,
    Shell,
    When,
    WhenFull,
)
from headrace.pipeline.problems import Report
from headrace.pipeline.records import Fields

_THREE_DAYS_MS = 3 * 86_400_000


def as_held(fields: Fields, _: Report) -> Fields:
    """What the record held, as it is."""
    return fields


def step(fields: Fields, report: Report) -> StepDef:
    """A step."""
    ways = [key for key in ("run", "use") if key in fields.keys]
    if len(ways) == 2 or not (ways or fields.meant & {"run", "use"}):
        both = "has both `run` and `use`; make two steps of it" if ways else "needs `run` or `use`"
        report.add(fields.keys["use"] if ways else fields.place, f"a step {both}")
    elif ways:
        odd = {"run": ("path",), "use": ("env", "workdir", "shell")}[ways[0]]
        for key in odd:
            if key in fields.keys:
                report.add(fields.keys[key], f"`{key}` has no meaning in a step with `{ways[0]}`; remove it")
    shell = fields.get("shell")
    return StepDef(
        place=fields.place,
        run=fields.get("run", ""),
        artifact=fields.get("use"),
        path=fields.get("path", ""),
        id=fields.get("id"),
        name=fields.get("name", ""),
        env=fields.get("env", {}),
        workdir=fields.get("workdir", ""),
        shell=Shell(shell.value) if shell else None,
        timeout_ms=fields.get("timeout", 0),
        condition=fields.get("if"),
        allow_failure=fields.get("allow_failure", False),
        retry=fields.get("retry"),
    )


def artifact(fields: Fields, report: Report) -> ArtifactDef | None:
    """An artifact, or None without a name."""
    name, when, if_empty = fields.get("name"), fields.get("when"), fields.get("if_empty")
    if name is None:
        report.hidden = True
        return None
    paths: tuple[str | Late, ...] = fields.get("paths", ())
    spec = ArtifactSpec(
        name=name.value if isinstance(name, Placed) else "",
        paths=tuple(each for each in paths if isinstance(each, str)),
        keep_ms=fields.get("keep", 0),
        when=When(when.value) if when else When.PASSED,
        if_empty=IfEmpty(if_empty.value) if if_empty else IfEmpty.FAIL,
    )
    return ArtifactDef(name.place, spec, name, paths)


def checkout(fields: Fields, _: Report) -> Checkout:
    """How the commit comes into the workspace."""
    submodules, lfs = fields.get("submodules", False), fields.get("lfs", False)
    return Checkout(depth=fields.get("depth", 0), submodules=submodules, lfs=lfs)


def environment(fields: Fields, _: Report) -> EnvironmentDef:
    """A deploy target."""
    return EnvironmentDef(fields.get("name"), fields.get("url", ""))


def retry(fields: Fields, _: Report) -> RetryDef:
    """How often it is tried again."""
    return RetryDef(fields.get("max", 1), fields.get("on", ()), fields.get("delay", 0), fields.get("backoff", 1.0))


def concurrency(fields: Fields, _: Report) -> ConcurrencyDef | None:
    """A group, or None without a name."""
    group, when = fields.get("group"), fields.get("when_full")
    if group is None:
        return None
    return ConcurrencyDef(group, fields.get("limit", 1), WhenFull(when.value) if when else WhenFull.QUEUE)


def approval(fields: Fields, _: Report) -> ApprovalDef:
    """A decision of a person."""
    timeout = fields.get("timeout", _THREE_DAYS_MS)
    return ApprovalDef(fields.place, fields.get("from", ()), fields.get("count", 1), timeout, fields.get("message", ""))


def cache(fields: Fields, _: Report) -> CacheDef | None:
    """A cache, or None without a key."""
    key, save = fields.get("key"), fields.get("save")
    if key is None:
        return None
    kept = Save(save.value) if save else Save.PASSED
    return CacheDef(fields.place, key, fields.get("restore", ()), fields.get("paths", ()), kept)


def resources(fields: Fields, _: Report) -> Resources:
    """What a job asks for."""
    return Resources(fields.get("cpu", 0.0), fields.get("memory", 0), fields.get("disk", 0), fields.get("pids", 0))


def job_of(name: Placed[str], fields: Fields) -> JobDef:
    """A job from what its record held."""
    sandbox, get = fields.get("sandbox"), fields.get
    return JobDef(
        name=name,
        steps=get("steps", ()),
        needs=get("needs"),
        env=get("env", {}),
        image=get("image"),
        sandbox=Placed(SandboxKind(sandbox.value), sandbox.place) if sandbox else None,
        network=get("network", Network.FULL),
        pool=get("pool"),
        requires=get("requires", {}),
        timeout_ms=get("timeout"),
        grace_ms=get("grace"),
        artifacts=get("artifacts", ()),
        checkout=get("checkout", Checkout()),
        matrix=get("matrix"),
        parallel=get("parallel", 0),
        condition=get("if"),
        allow_failure=get("allow_failure", False),
        retry=get("retry"),
        outputs=get("outputs", {}),
        services=get("services", ()),
        caches=get("cache", ()),
        secrets=get("secrets", ()),
        resources=get("resources", Resources()),
        concurrency=get("concurrency"),
        junit=get("reports", ()),
    )


def stage(fields: Fields, _: Report) -> StageDef:
    """A stage."""
    name = fields.get("name")
    if name is None:
        name = Placed("", fields.place)
    return StageDef(
        name,
        jobs=fields.get("jobs", ()),
        env=fields.get("env", {}),
        environment=fields.get("environment"),
        condition=fields.get("if"),
        approval=fields.get("approval"),
    )


def defaults(fields: Fields, _: Report) -> Defaults:
    """What holds for every job."""
    shell = fields.get("shell")
    return Defaults(
        image=fields.get("image"),
        pool=fields.get("pool"),
        timeout_ms=fields.get("timeout", Defaults().timeout_ms),
        shell=Shell(shell.value) if shell else Shell.DEFAULT,
    )


def pipeline(fields: Fields, report: Report) -> Pipeline:
    """The whole file."""
    stem = report.file.rpartition("/")[2].removesuffix(".yml").removesuffix(".yaml")
    return Pipeline(
        file=report.file,
        name=fields.get("name") or stem or "pipeline",
        stages=fields.get("stages", ()),
        env=fields.get("env", {}),
        defaults=fields.get("defaults", Defaults()),
        triggers=fields.get("on"),
        concurrency=fields.get("concurrency"),
        priority=fields.get("priority", 0),
    )


def fragment(fields: Fields, report: Report) -> FragmentDef:
    """What a step adds to its run."""
    found = {key for key in ("stages", "stage", "jobs") if key in fields.keys or key in fields.meant}
    if found not in ({"stages"}, {"stage", "jobs"}):
        report.add(fields.place, "a fragment has `stages`, or `stage` (the name of one) and `jobs`")
    stage = fields.get("stage")
    return FragmentDef(fields.place, fields.get("stages", ()), stage, fields.get("jobs", ()))
