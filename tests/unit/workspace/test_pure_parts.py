"""The pure parts of the workspace room: sentences, verdicts, names."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.problems import Cause, JobProblem
from agent.workspace.artifacts import ArtifactFile, Collected, Ending, check_empty, is_kept
from agent.workspace.git import last_line, passed_on, without_credentials
from agent.workspace.mirror import Origin
from agent.workspace.tree import TooMuch, TreeProblem, components
from headrace.pipeline.plan import ArtifactSpec, IfEmpty, When


def test_an_artifact_is_kept_after_the_endings_it_names() -> None:
    """A core dump is wanted after a failure, a wheel after a success."""
    kept = {(when, ending) for when in When for ending in Ending if is_kept(when, ending)}
    assert kept == {
        (When.PASSED, Ending.PASSED),
        (When.FAILED, Ending.FAILED),
        (When.ALWAYS, Ending.PASSED),
        (When.ALWAYS, Ending.FAILED),
    }


def test_an_empty_artifact_fails_its_job_unless_it_only_warns() -> None:
    """A mistyped glob must not pass in silence."""
    nothing = Collected((), ("dist/link",))
    with pytest.raises(JobProblem, match=r"Artifact `w` is empty: `\*\.whl` matched no file but `dist/link`") as caught:
        check_empty(ArtifactSpec("w", ("*.whl",)), nothing)
    assert caught.value.cause is Cause.ARTIFACT_EMPTY
    assert "is empty" in check_empty(ArtifactSpec("w", ("*.whl",), if_empty=IfEmpty.WARN), nothing)
    assert check_empty(ArtifactSpec("w", ("x",)), Collected((ArtifactFile("x", "0", 0, executable=False),), ())) == ""


def test_git_is_quoted_with_its_last_fatal_line_and_without_credentials() -> None:
    """The sentence goes into a log that many may read."""
    said = "warning: x\nfatal: unable to access 'https://ana:secret@host/x/': 403\nhint: try again\n"
    assert last_line(said) == "unable to access 'https://host/x/': 403"
    assert last_line("Permission denied (publickey).\nfatal: Could not read from remote repository.\n\nhint") == (
        "Permission denied (publickey)"
    )
    assert last_line("") == "it said nothing"


@given(st.text(alphabet="abc1%!$", min_size=1), st.text(alphabet="abc1%!$:", min_size=0))
def test_no_password_survives_the_cut(user: str, password: str) -> None:
    """Whatever it is made of."""
    assert without_credentials(f"x https://{user}:{password}@host/p y") == "x https://host/p y"


def test_only_proxies_and_certificates_are_passed_on() -> None:
    """A token in the agent's environment is none of git's business."""
    given_ = {"https_proxy": "p", "NO_PROXY": "n", "GIT_SSL_CAINFO": "c", "AWS_SECRET_ACCESS_KEY": "s", "GIT_DIR": "d"}
    assert passed_on(given_) == {"https_proxy": "p", "NO_PROXY": "n", "GIT_SSL_CAINFO": "c"}


@pytest.mark.parametrize("url", ["ext::sh -c id", "-oProxyCommand=id", "ftp://h/x", "--upload-pack=id", "fd::7", "x"])
def test_a_url_that_could_start_a_program_is_refused(url: str) -> None:
    """`ext::` runs a command, a leading dash is an option: neither is a repository."""
    with pytest.raises(JobProblem):
        Origin.of_url(url)


@pytest.mark.parametrize(
    ("url", "protocols"),
    [
        ("https://u:p@h/x.git", ("https",)),
        ("git@host:x/y.git", ("ssh",)),
        ("ssh://h/x", ("ssh",)),
        ("file:///srv/x", ("file",)),
    ],
)
def test_a_url_admits_its_own_protocol_and_no_other(url: str, protocols: tuple[str, ...]) -> None:
    """A redirect from https to file would read the agent's disk."""
    assert Origin.of_url(url).protocols == protocols
    assert "p@" not in str(Origin.of_url("https://u:p@h/x.git"))


@pytest.mark.parametrize("path", ["", "/x", "..", "a/../b", "a\0", ".", "./"])
def test_a_path_that_is_not_below_the_workspace_is_refused(path: str) -> None:
    """Paths come from other attempts, by way of the coordinator."""
    with pytest.raises(TreeProblem):
        components(path)


def test_a_path_too_deep_or_too_long_is_refused() -> None:
    """The kernel would refuse it later and less clearly."""
    with pytest.raises(TooMuch):
        components("/".join("a" * 300))
    with pytest.raises(TooMuch):
        components("a" * 256)
