"""`.gitmodules` and pointers of git LFS, as a stranger may write them."""

from __future__ import annotations

import pytest

from agent.workspace.gitmodules import MOST, BadModules, Entry, entries, resolved, shown
from agent.workspace.pointers import BadPointer, Pointer, pointer_of


def listed(**modules: dict[str, str]) -> bytes:
    """What `git config --list -z` would say of these."""
    lines = [f"submodule.{name}.{key}\n{value}\0" for name, said in modules.items() for key, value in said.items()]
    return "".join(lines).encode(errors="surrogateescape")


def one(name: str = "lib", path: str = "lib", **more: str) -> bytes:
    return listed(**{name: {"path": path, "url": "https://example.com/lib", **more}})


def test_an_entry_has_a_name_a_path_and_a_url() -> None:
    """Other keys and other sections are none of ours, and a name may hold dots and blanks."""
    said = one("my lib.v2", "third party/lib", branch="main", shallow="true") + b"core.pager\nevil\0"
    assert entries(said) == [Entry("my lib.v2", "third party/lib", "https://example.com/lib")]
    assert entries(b"") == []
    assert entries(listed(lost={"url": "https://example.com/lost"})) == []


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("../lib", "has an empty, `.` or `..` part"),
        ("a/../../lib", "has an empty, `.` or `..` part"),
        ("a\\..\\lib", "has an empty, `.` or `..` part"),
        ("./lib", "has an empty, `.` or `..` part"),
        ("a//lib", "has an empty, `.` or `..` part"),
        ("lib/", "has an empty, `.` or `..` part"),
        ("", "has an empty, `.` or `..` part"),
        (".", "has an empty, `.` or `..` part"),
        ("/etc", "is absolute"),
        ("-lib", "looks like an option"),
        ("--upload-pack=evil", "looks like an option"),
        ("lib\x1b[2J", "has a control character"),
        ("lib\nother", "has a control character"),
        (".git", "leads into git's own folder"),
        (".GIT/hooks", "leads into git's own folder"),
        ("a/.Git/hooks", "leads into git's own folder"),
        (".git /hooks", "leads into git's own folder"),
        ("GIT~1/hooks", "leads into git's own folder"),
        ("a" * 5000, "is longer than 4,096 bytes"),
    ],
)
def test_a_path_or_a_name_that_could_lead_elsewhere_is_refused(path: str, why: str) -> None:
    """The name chooses a folder in the user's own clone, the path one in the workspace."""
    with pytest.raises(BadModules, match="the path") as caught:
        entries(one(path=path))
    assert str(caught.value).endswith(f"which {why}")
    assert str(caught.value).isprintable()
    if "\n" not in path:  # git reads no such name
        with pytest.raises(BadModules, match="the name"):
            entries(one(name=path))


def test_a_command_is_refused_before_anybody_could_run_it() -> None:
    """Git refuses it too; `update = !` was a way to run programs once."""
    with pytest.raises(BadModules, match="has a command as `update` of lib: none is run"):
        entries(one(update="!touch /tmp/ran"))
    assert entries(one(update="rebase"))


def test_what_is_said_twice_is_refused() -> None:
    """Two readers could take another one each."""
    with pytest.raises(BadModules, match="says `url` of lib twice"):
        entries(one() + listed(lib={"url": "https://example.com/other"}))
    with pytest.raises(BadModules, match="has two entries at the path lib"):
        entries(one("a") + one("b"))
    with pytest.raises(BadModules, match="has the path lib/inner inside of the submodule lib"):
        entries(one() + one("lib-x", "lib-x") + one("inner", "lib/inner"))
    with pytest.raises(BadModules, match=f"has {MOST + 1} entries: at most {MOST}"):
        entries(b"".join(one(f"m{n}", f"m{n}") for n in range(MOST + 1)))


def test_a_message_shows_odd_texts_escaped_and_short() -> None:
    """It ends in a log and on a terminal."""
    assert shown("lib/x") == "lib/x"
    assert shown("a\x1b[2J\udcff") == r"'a\x1b[2J\udcff'"
    assert shown("a b") == "'a b'"
    assert len(shown("x" * 5000)) == 201


@pytest.mark.parametrize(
    "url",
    [
        "-oProxyCommand=evil",
        "ssh://-oProxyCommand=evil/x",
        "ssh://ana@-oProxyCommand=evil/x",
        "ana@-oProxyCommand=evil:x",
        "ext::sh -c evil",
        "http::https://example.com/x",
        "https://example.com/\nhost=evil",
        "",
    ],
)
def test_a_url_that_is_an_option_a_helper_or_two_lines_is_refused(url: str) -> None:
    """Git has learnt to refuse these, one by one."""
    with pytest.raises(BadModules):
        resolved(url, "https://example.com/shop")


@pytest.mark.parametrize(
    ("base", "url"),
    [
        ("https://example.com/shop", "../../lib"),
        ("ssh://git@example.com/shop", "../../../lib"),
        ("git@example.com:shop", "../../lib"),
        ("/srv/shop", "../../../lib"),
    ],
)
def test_a_relative_url_leads_to_no_other_host(base: str, url: str) -> None:
    """`../../evil.example/x` would take the host for a folder."""
    with pytest.raises(BadModules, match="leads above"):
        resolved(url, base)


def test_a_relative_url_of_nobody_knows_where_names_its_mend() -> None:
    """A bundle does not say where it comes from."""
    with pytest.raises(BadModules, match=r"\.\./lib is relative, .* `--repo URL`"):
        resolved("../lib", "")
    assert resolved("https://example.com/lib", "") == "https://example.com/lib"


def test_no_credential_of_a_url_is_in_a_message() -> None:
    """Messages are logged and shown."""
    with pytest.raises(BadModules) as caught:
        resolved("../../lib", "https://ana:secret@example.com/shop")
    assert "secret" not in str(caught.value)


OID = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"


def test_a_pointer_is_told_from_a_file() -> None:
    """What only looks like one stays as it is; one that cannot be followed is said, not left in the tree."""
    text = Pointer(OID, 5).text()
    assert pointer_of(text) == Pointer(OID, 5)
    assert Pointer(OID, 5).below() == f"objects/2c/f2/{OID}"
    assert pointer_of(b"version https://example.com/v9\n") is None
    assert pointer_of(b"hello") is None
    assert pointer_of(text + b"x" * 1024) is None
    with pytest.raises(BadPointer, match="no `oid"):
        pointer_of(text.replace(OID.encode(), b"../../../../etc/passwd"))
    with pytest.raises(BadPointer, match="no `size`"):
        pointer_of(text.replace(b"size 5", b"size -5"))
    with pytest.raises(BadPointer, match="an extension"):
        pointer_of(text.replace(b"oid ", b"ext-0-evil sha256:00\noid "))
