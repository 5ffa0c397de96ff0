"""What a systemd unit says, and the same as a container engine's settings: so that it can be tried for real."""

from __future__ import annotations

import json
import subprocess
from collections import defaultdict
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[3] / "deploy" / "systemd"


def directives(unit: str) -> dict[str, list[str]]:
    """Directive -> its values, in order; of all sections, for no name stands in two."""
    found = defaultdict(list)
    for line in (FOLDER / unit).read_text().splitlines():
        name, equals, value = line.partition("=")
        if equals and not line.startswith(("#", ";")):
            found[name.strip()].append(value.strip())
    return dict(found)


def capabilities(unit: str) -> set[str]:
    """The capability bounding set, without `CAP_`."""
    return {word.removeprefix("CAP_") for value in directives(unit)["CapabilityBoundingSet"] for word in value.split()}


def possible() -> set[str]:
    """The capabilities that this machine lets anybody have: in a container of its own it may be fewer than all."""
    shown = subprocess.run(["setpriv", "--dump"], capture_output=True, text=True, check=True).stdout
    line = next(line for line in shown.splitlines() if line.startswith("Capability bounding set:"))
    return {name.upper() for name in line.partition(":")[2].strip().split(",")}


def seccomp_profile(unit: str) -> str:
    """The unit's SystemCallFilter as an engine's profile, read as systemd.exec(5) reads it: the first line says
    whether it is a list of what is allowed; later ones add and take away. What systemd always allows is allowed."""
    lines = directives(unit)["SystemCallFilter"]
    groups = _groups()
    allow = not lines[0].startswith("~")
    listed: set[str] = set(groups["@default"]) if allow else set()
    for line in lines:
        names = {each for word in line.removeprefix("~").split() for each in _expanded(word, groups)}
        listed = listed | names if line.startswith("~") != allow else listed - names
    actions = ("SCMP_ACT_ERRNO", "SCMP_ACT_ALLOW")
    rule = {"names": sorted(listed), "action": actions[allow]}
    return json.dumps({"defaultAction": actions[not allow], "syscalls": [rule]})


def _groups() -> dict[str, list[str]]:
    """systemd's own groups of system calls: what stands in each, groups among it."""
    shown = subprocess.run(
        ["systemd-analyze", "syscall-filter", "--no-pager"], capture_output=True, text=True, check=True
    ).stdout
    groups: dict[str, list[str]] = {}
    name = ""
    for line in shown.splitlines():
        word = line.strip()
        if line.startswith("@"):
            name = word
            groups[name] = []
        elif name and line.startswith(" ") and word and not word.startswith("#"):
            groups[name].append(word)
        elif not word:
            name = ""
    return groups


def _expanded(word: str, groups: dict[str, list[str]]) -> set[str]:
    if not word.startswith("@"):
        return {word}
    return {each for inner in groups[word] for each in _expanded(inner, groups)}
