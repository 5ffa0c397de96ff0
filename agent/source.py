"""From what a run says of its source to a workspace that holds it."""

from __future__ import annotations

import os
from pathlib import Path

from agent.blobs import AttemptBlobs
from agent.problems import Cause, JobProblem
from agent.workspace.checkout import Checkouts, Wanted, Workspace
from agent.workspace.git import Git
from agent.workspace.mirror import Mirrors, Origin
from agent.workspace.transfers import Courier, Transfer, TransferFailed
from agent.workspace.tree import Owner
from agent.workspace.upstream import Upstream, clone_of, upstream_of_path
from headrace.pipeline.plan import Checkout
from headrace.v1 import common_pb2 as pb

_UNUSED_S = 30 * 86_400.0
"""Seconds after which a mirror or a large file that nobody used goes."""


class Sources:
    """Makes workspaces. `local`: who asks for runs is this machine's own user, who may name `file://` URLs on it."""

    def __init__(self, git: Git, mirrors: Mirrors, courier: Courier, *, local: bool, lfs_limit: int) -> None:
        self._git = git
        self._mirrors = mirrors
        self._checkouts = Checkouts(git, mirrors, lfs_limit=lfs_limit)
        self._courier = courier
        self._local = local

    def tidy(self, now_s: float) -> None:
        """Removes mirrors that nobody has used for long. Blocks; only while no attempt of this agent lives.

        Raises `NotRemoved`, `OSError`.
        """
        self._mirrors.remove_unused(lambda: now_s, _UNUSED_S)

    async def make(
        self, spec: pb.JobSpec, folder: Path, *, blobs: AttemptBlobs, owner: Owner | None, is_host: bool
    ) -> Workspace:
        """The workspace of a job in `folder`, which must not exist yet. Raises `JobProblem`.

        `is_host`: the sandbox is the host itself and finds the mirror where it lies.
        """
        bundle = folder.parent / "bundle"
        try:
            origin = await self._origin(spec, blobs, bundle)
            wanted = Wanted(
                repository=spec.source.repository,
                origin=origin,
                commit=spec.source.commit,
                checkout=Checkout(
                    enabled=spec.checkout.enabled,
                    depth=spec.checkout.depth,
                    submodules=spec.checkout.submodules,
                    lfs=spec.checkout.lfs,
                ),
                trusted=spec.trusted,
                tag=spec.source.tag,
                url=spec.source.url,
                upstream=await self._upstream(spec.source, origin) if spec.checkout.enabled else Upstream(),
            )
            return await self._checkouts.make(wanted, folder, owner=owner, is_host=is_host)
        finally:
            bundle.unlink(missing_ok=True)

    async def _origin(self, spec: pb.JobSpec, blobs: AttemptBlobs, bundle: Path) -> Origin:
        match spec.source.WhichOneof("fetch"):
            case "path":
                return Origin.of_path(Path(spec.source.path))  # a coordinator takes none but from its own machine
            case "url":
                return self._here(Origin.of_url(spec.source.url))
            case "bundle_sha256" if spec.checkout.enabled:
                await self._download(await blobs.fetch_bundle(), bundle)
                return Origin.of_bundle(bundle)
            case "bundle_sha256":
                return Origin.of_bundle(bundle)
            case _:
                if not spec.checkout.enabled:
                    return Origin.of_path(bundle)
                raise JobProblem(Cause.CHECKOUT_FAILED, "The run does not say where its source is fetched from.")

    async def _upstream(self, source: pb.Source, origin: Origin) -> Upstream:
        """What the source is known by. Nothing of this machine but to a run whose source lies on it."""
        match source.WhichOneof("fetch"):
            case "path":
                return await upstream_of_path(self._git, Path(source.repository or source.path))
            case "url" if origin.local is not None:
                return Upstream(source.url, clone_of(origin.local), local=True)
            case "url":
                return Upstream(source.url)
            case _:
                known = Upstream(source.repository)
                return known if known.is_remote() else Upstream()

    def _here(self, origin: Origin) -> Origin:
        """Refuses what lies on this machine: the agent can read what whoever asked for the run may not."""
        if origin.local is not None and not self._local:
            sentence = (
                f"This agent does not fetch {origin} from its own machine: name another URL, or hand in a bundle."
            )
            raise JobProblem(Cause.CHECKOUT_FAILED, sentence)
        return origin

    async def _download(self, transfer: Transfer, file: Path) -> None:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            await self._courier.download(transfer, _File(descriptor))
        except TransferFailed as error:
            raise JobProblem(Cause.ERRORED, f"The run's source could not be downloaded: {error}") from error
        finally:
            os.close(descriptor)


class _File:
    """An open file as the sink of a download."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def rewind(self) -> None:
        os.ftruncate(self._descriptor, 0)
        os.lseek(self._descriptor, 0, os.SEEK_SET)

    def write(self, piece: bytes) -> None:
        view = memoryview(piece)
        while view:
            view = view[os.write(self._descriptor, view) :]
