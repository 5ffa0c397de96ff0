"""A job's artifacts: kept after its steps, brought in by `use: artifact/…`."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from agent.parts import Parts
from agent.record import Record
from agent.workspace.artifacts import Ending, check_empty, collect, download_files, is_kept, upload_files
from agent.workspace.tree import Tree
from headrace.pipeline.plan import ArtifactSpec, IfEmpty, SandboxKind, When
from headrace.v1 import common_pb2 as pb

Say = Callable[[str], Awaitable[None]]


def wanted(spec: pb.JobSpec, ending: Ending | None) -> list[ArtifactSpec]:
    """The artifacts to keep after this ending; None: the job was canceled, and only `always` holds."""
    found = [
        ArtifactSpec(each.name, tuple(each.paths), each.keep_ms, When(each.when), IfEmpty(each.if_empty))
        for each in spec.artifacts
    ]
    return [each for each in found if (each.when is When.ALWAYS if ending is None else is_kept(each.when, ending))]


async def keep_artifacts(record: Record, parts: Parts, tree: Tree, specs: list[ArtifactSpec], say: Say) -> None:
    """Uploads and publishes them, one after another. May be repeated. Raises `JobProblem`."""
    blobs = parts.blobs.for_attempt(record.attempt, record.token)
    for spec in specs:
        collected = await collect(tree, spec, time.monotonic)
        if warning := check_empty(spec, collected):
            await say(f"{warning}\n")
        await upload_files(parts.courier, tree, collected.files, blobs.prepare_upload)
        await blobs.publish(spec, collected.files, f"{record.attempt}-{spec.name}")
        size = sum(file.size for file in collected.files)
        await say(f"artifact {spec.name}: {len(collected.files)} files, {size} bytes\n")


async def use_artifact(record: Record, parts: Parts, workspace: Path, step: pb.Step, say: Say) -> None:
    """Brings an artifact of this run into the workspace. Raises `JobProblem`."""
    blobs = parts.blobs.for_attempt(record.attempt, record.token)
    use = step.use_artifact
    files, ask = await blobs.fetch(use.artifact)
    with Tree.open(workspace) as tree:
        owner = parts.owner_in(SandboxKind(record.sandbox), record.slot)
        await download_files(parts.courier, tree, files, ask, into=use.path, owner=owner)
    size = sum(file.size for file in files)
    await say(f"artifact {use.artifact}: {len(files)} files, {size} bytes\n")
