"""What a job finds of submodules and large files: a real agent, and git inside of real sandboxes."""

from __future__ import annotations

from pathlib import Path

import pytest

from headrace.v1 import common_pb2 as pb
from tests.harness import images
from tests.harness.git_repo import Repository, git
from tests.integration.agent.conftest import Agent, job
from tests.integration.agent.other_side import OtherSide

WITH = pb.Checkout(enabled=True, submodules=True, lfs=True)
LOOKS = """
git submodule status --recursive
git -C lib log -1 --format='lib: %s'
git -C lib/deep log -1 --format='deep: %s'
test -z "$(git status --porcelain)" && echo nothing changed
cat a.bin
touch /hr-mirror/modules/0/objects/x 2>/dev/null || echo read-only
git -C lib -c user.name=j -c user.email=j@x commit -q --allow-empty -m own && git -C lib log --format=%s
"""


@pytest.fixture
def nested(tmp_path: Path) -> tuple[Path, str]:
    """A user's clone with a submodule in a submodule and a large file; what it was cloned from is gone."""
    deep, lib, shop = (Repository(tmp_path / name) for name in ("deep", "lib", "shop"))
    deep.commit({"a": "deep"}, "of deep")
    for outer, inner in ((lib, "deep"), (shop, "lib")):
        words = ("submodule", "--quiet", "add", str(tmp_path / inner), inner)
        git(outer.path, "-c", "protocol.file.allow=always", *words)
        outer.git("config", "--file", ".gitmodules", f"submodule.{inner}.url", f"https://127.0.0.1:1/{inner}")
        outer.commit({}, f"of {outer.path.name}")
    git(shop.path / "lib", "config", "submodule.deep.url", str(deep.path))
    git(shop.path / "lib", "-c", "protocol.file.allow=always", "submodule", "--quiet", "update", "--init")
    git(shop.path / "lib", "checkout", "--quiet", lib.git("rev-parse", "HEAD"))
    shop.git("config", "filter.lfs.clean", "git-lfs clean -- %f")
    commit = shop.commit({".gitattributes": "*.bin filter=lfs", "a.bin": "the large file\n"})
    for gone in (deep, lib):
        gone.path.rename(gone.path.with_name(f"{gone.path.name} gone"))
    return shop.path, commit


async def looked(side: OtherSide, spec: pb.JobSpec) -> list[str]:
    """What the job's step printed."""
    attempt = side.give(spec)
    await side.until(lambda: attempt in side.ended, 60)
    ended = side.ended[attempt]
    await side.until(lambda: len(side.logs[attempt].records) == ended.log_records["main"])
    text = side.logs[attempt].text
    assert ended.state == pb.ATTEMPT_STATE_PASSED, (ended, text)
    assert "large files: 1, 15 bytes\n" in side.logs[attempt].ours
    printed = text.splitlines()
    return printed[next(at for at, line in enumerate(printed) if " lib (" in line) :]


def check(printed: list[str]) -> None:
    status, rest = printed[:2], printed[2:]
    assert [line.split()[1] for line in status] == ["lib", "lib/deep"]
    assert [line[0] for line in status] == [" ", " "], "each is there, at the commit that is recorded"
    assert rest[:5] == ["lib: of lib", "deep: of deep", "nothing changed", "the large file", "read-only"]
    assert rest[5:7] == ["own", "of lib"]


@pytest.mark.parametrize("fields", [{}, {"sandbox": "host", "network": "full"}], ids=["bubblewrap", "host"])
async def test_git_knows_the_submodules_inside_of_the_sandbox(
    fields: dict[str, object], agent: Agent, side: OtherSide, nested: tuple[Path, str]
) -> None:
    """The folders are bound read-only, one for each repository, and a job can commit in its own copies."""
    agent.flags["allow_host"] = True
    await agent.start()
    spec = job(nested, LOOKS, checkout=WITH, **fields)
    spec.source.repository = str(nested[0])
    if fields:
        spec.steps[0].run.script = LOOKS.replace("touch /hr-mirror/modules/0/objects/x 2>/dev/null ||", "")
    check(await looked(side, spec))


@pytest.mark.root
@pytest.mark.docker
@pytest.mark.timeout(600)  # the image is made once
async def test_git_knows_the_submodules_inside_of_a_container(
    dockered: Agent, side: OtherSide, engine_url: str, nested: tuple[Path, str]
) -> None:
    """There the job is root, and git distrusts what belongs to anybody else."""
    await dockered.start()
    image = images.debian(engine_url, "git")
    spec = job(nested, LOOKS, checkout=WITH, sandbox="docker", image=image)
    spec.source.repository = str(nested[0])
    check(await looked(side, spec))


async def test_a_submodule_that_cannot_be_had_fails_the_checkout_with_one_sentence(
    agent: Agent, side: OtherSide, nested: tuple[Path, str]
) -> None:
    """The cause is the checkout, not the job, and no step runs."""
    await agent.start()
    spec = job(nested, "echo never", checkout=WITH)
    spec.source.repository = "/nowhere/shop"  # so nothing is known of the user's clone
    attempt = side.give(spec)
    await side.until(lambda: attempt in side.ended, 60)
    ended = side.ended[attempt]
    assert ended.cause == pb.CAUSE_CHECKOUT_FAILED
    assert ended.sentence.startswith("Submodule lib: Commit ")
    assert "cannot be fetched from https://127.0.0.1:1/lib: git says: " in ended.sentence
    assert not [step for step in ended.steps if not step.skipped]
