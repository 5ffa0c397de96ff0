"""What `.gitmodules` says of a commit's submodules: a stranger's text, so every word of it is checked. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from agent.workspace.git import without_credentials

MOST = 500
"""Submodules of one workspace, nested ones counted."""
DEEPEST = 10
"""Submodules in submodules."""
FILE_LIMIT = 1 << 20
"""Bytes of one `.gitmodules`."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
# `.git` as it is also spelt where case does not count, and where names have a short form.
_GITS_OWN = re.compile(r"\.git[ .]*|git~[0-9]+", re.IGNORECASE)
_HELPER = re.compile(r"[A-Za-z0-9+.-]+::")
_OPTION_LIKE = re.compile(r"-|[A-Za-z0-9+.-]+://(?:[^/]*@)?-|[^/:]*@-")
_RELATIVE = ("./", "../")
# What of a URL no `../` may take away: `https://host`, `host:`, nothing of a path.
_PLACE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/]*|[^/:]+:(?!//)|")


class BadModules(Exception):
    """Something in `.gitmodules` is refused; the message is one sentence without its full stop."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One submodule as `.gitmodules` has it, its name and path proved to lead nowhere else."""

    name: str
    path: str
    url: str
    """As it stands there: maybe relative, maybe empty."""


def shown(text: str) -> str:
    """A stranger's text for a message: plain if it is plain, else quoted with its odd characters escaped."""
    cut = text if len(text) <= 200 else f"{text[:200]}…"
    return cut if cut.isprintable() and cut and " " not in cut else repr(cut)


def entries(listed: bytes) -> list[Entry]:
    """The entries of what `git config --list -z` says of the file. Raises `BadModules`.

    An entry without a path is none: nothing in a tree can belong to it.
    """
    found: dict[str, dict[str, str]] = {}
    for item in listed.split(b"\0"):
        key, _, value = item.decode(errors="surrogateescape").partition("\n")
        section, _, rest = key.partition(".")
        name, dot, variable = rest.rpartition(".")
        if section != "submodule" or not dot or variable not in {"path", "url", "update"}:
            continue
        if variable in found.setdefault(name, {}):
            raise BadModules(f".gitmodules says `{variable}` of {shown(name)} twice")
        found[name][variable] = value
    made = [_entry(name, said) for name, said in found.items() if "path" in said]
    if len(made) > MOST:
        raise BadModules(f".gitmodules has {len(made):,} entries: at most {MOST} are checked out")
    _check_apart(made)
    return made


def _entry(name: str, said: dict[str, str]) -> Entry:
    path = said["path"]
    for what, text in (("name", name), ("path", path)):
        if why := _why_not(text):
            raise BadModules(f".gitmodules has the {what} {shown(text)}, which {why}")
    if said.get("update", "").startswith("!"):
        raise BadModules(f".gitmodules has a command as `update` of {shown(name)}: none is run, so take it out")
    return Entry(name, path, said.get("url", ""))


def _why_not(text: str) -> str:
    """What is wrong with a name or path that must lead below the folder it is seen from; empty: nothing."""
    names = re.split(r"[/\\]", text)
    if text.startswith("/"):
        return "is absolute"
    if text.startswith("-"):
        return "looks like an option"
    if _CONTROL.search(text):
        return "has a control character"
    if ".." in names or any(each in {"", "."} for each in text.split("/")):
        return "has an empty, `.` or `..` part"
    if any(_GITS_OWN.fullmatch(each) for each in names):
        return "leads into git's own folder"
    if len(text.encode(errors="surrogateescape")) > 4096:
        return "is longer than 4,096 bytes"
    return ""


def _check_apart(made: Iterable[Entry]) -> None:
    """No two at one path, and none inside of another: it would come from two repositories."""
    last = ""
    for path in sorted((each.path for each in made), key=lambda path: path.split("/")):
        if last and path == last:
            raise BadModules(f".gitmodules has two entries at the path {shown(path)}")
        if last and path.startswith(f"{last}/"):
            raise BadModules(f".gitmodules has the path {shown(path)} inside of the submodule {shown(last)}")
        last = path


def resolved(url: str, base: str) -> str:
    """The URL of a submodule as git resolves it: `./` and `../` begin at `base`, its superproject's own URL.

    Raises `BadModules` for what is no URL that could be fetched from, or where `base` is needed and empty.
    """
    if not url:
        raise BadModules("it has no `url` in .gitmodules")
    if _CONTROL.search(url):
        raise BadModules(f"its URL {shown(without_credentials(url))} has a control character")
    if _HELPER.match(url) or _OPTION_LIKE.match(url):
        raise BadModules(f"its URL {shown(without_credentials(url))} is none that is spoken here")
    if not url.startswith(_RELATIVE):
        return url
    if not base:
        raise BadModules(
            f"its URL {shown(url)} is relative, and nobody knows to what: a bundle does not say where it comes from. "
            "Write the whole URL, or name the repository with `--repo URL`"
        )
    at = _PLACE.match(base)
    assert at is not None  # it matches everything, if need be an empty part
    place, path = at[0], base[at.end() :]
    lead = "/" if path.startswith("/") or "://" in place else ""
    names = [name for name in path.split("/") if name]
    rest = url
    while rest.startswith(_RELATIVE):
        step, _, rest = rest.partition("/")
        if step == ".." and not names:
            raise BadModules(f"its URL {shown(url)} leads above {shown(without_credentials(base))}")
        if step == "..":
            names.pop()
    return f"{place}{lead}{'/'.join([*names, rest])}".removesuffix("/")
