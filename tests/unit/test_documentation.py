"""What the generated documentation says, held against the code that it is made from."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path

from agent.sandbox import passed
from headrace.settings_names import CLIENT

SETTINGS = Path(__file__).resolve().parents[2] / "docs/reference/settings.md"


def documented() -> list[str]:
    """The names of settings.md, where `*` stands for the rest of a name."""
    part = SETTINGS.read_text("utf-8").split("<!-- begin passed variables -->")[1].split("<!-- end")[0]
    return [line.removeprefix("- `").removesuffix("`") for line in part.strip().splitlines()]


def test_the_variables_that_jobs_are_given_are_those_that_are_documented() -> None:
    """Whoever turns it on has to know what leaves the machine's environment: no more, no less."""
    names = documented()
    examples = {each.replace("*", "ALL" if each.isupper() else "all"): "v" for each in names}
    assert set(passed.settings(examples)) == set(examples)
    given = ["HTTPS_PROXY", "no_proxy", "PIP_INDEX_URL", "UV_CACHE_DIR", "NPM_CONFIG_REGISTRY", "SSL_CERT_FILE"]
    for name in [*given, "PATH", "HOME", "PIP", "GIT_ASKPASS", "AWS_SECRET_ACCESS_KEY", "HEADRACE_TOKEN", "_PROXY"]:
        matches = any(fnmatchcase(name, each.replace("*", "?*")) for each in names)
        assert matches == bool(passed.settings({name: "v"})), name


def test_every_setting_of_the_command_line_is_documented() -> None:
    """A variable that only the source tells of is found by nobody."""
    part = SETTINGS.read_text("utf-8").split("## The command line and the SDK")[1].split("\n## ")[0]
    assert {line.split("`")[1] for line in part.splitlines() if line.startswith("| `")} == {
        *CLIENT,
        "HEADRACE_TRACEBACK",
        "XDG_STATE_HOME",
    }
