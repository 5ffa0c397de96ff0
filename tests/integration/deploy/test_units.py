"""The systemd units: systemd itself finds them right, and what must not stand in them does not."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from agent.holding import LAST_TO_GO
from agent.sandbox.engine_group import SLICE
from tests.integration.deploy.units import FOLDER, capabilities, directives

UNITS = ("headrace-coordinator.service", "headrace-agent.service")
SLICES = ("headrace.slice", "headracejobs.slice")

MOUNT_NAMESPACE = frozenset(
    {
        "BindLogSockets",
        "BindPaths",
        "BindReadOnlyPaths",
        "DynamicUser",
        "ExecPaths",
        "ExtensionDirectories",
        "ExtensionImages",
        "InaccessibleDirectories",
        "InaccessiblePaths",
        "IPCNamespacePath",
        "LogNamespace",
        "MountAPIVFS",
        "MountFlags",
        "MountImages",
        "NetworkNamespacePath",
        "NoExecPaths",
        "PrivateBPF",
        "PrivateDevices",
        "PrivateIPC",
        "PrivateMounts",
        "PrivateNetwork",
        "PrivatePIDs",
        "PrivateTmp",
        "PrivateUsers",
        "ProcSubset",
        "ProtectControlGroups",
        "ProtectHome",
        "ProtectHostname",
        "ProtectKernelLogs",
        "ProtectKernelModules",
        "ProtectKernelTunables",
        "ProtectProc",
        "ProtectSystem",
        "ReadOnlyDirectories",
        "ReadOnlyPaths",
        "ReadWriteDirectories",
        "ReadWritePaths",
        "RootDirectory",
        "RootEphemeral",
        "RootHash",
        "RootImage",
        "RootMStack",
        "TemporaryFileSystem",
    }
)
"""Directives by which systemd gives a service a mount namespace of its own (or one that brings it along)."""


def analyze(*words: str) -> subprocess.CompletedProcess[str]:
    """`systemd-analyze`; under CI a missing one fails."""
    if shutil.which("systemd-analyze") is None:
        why = "systemd-analyze is missing: apt-get install systemd"
        if os.environ.get("CI") == "true":
            pytest.fail(why)
        pytest.skip(why)
    return subprocess.run(["systemd-analyze", *words], capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize("unit", [*UNITS, *SLICES])
def test_systemd_finds_the_unit_right(unit: str, tmp_path: Path) -> None:
    """Not one complaint: a directive that systemd does not know is ignored by it, and protects nobody."""
    for slice_ in SLICES:
        shutil.copy(FOLDER / slice_, tmp_path)
    program = tmp_path / "headrace"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    copy = tmp_path / unit
    copy.write_text((FOLDER / unit).read_text().replace("/opt/headrace/bin/headrace", str(program)))
    done = analyze("verify", "--man=no", "--recursive-errors=no", str(copy))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_agents_unit_makes_no_mount_namespace() -> None:
    """In one of its own, the agent's mounts would end with a restart, and a container engine would not see them."""
    assert not directives("headrace-agent.service").keys() & MOUNT_NAMESPACE


def test_the_agents_jobs_outlive_the_agent() -> None:
    """Only the daemon is signalled: supervisors go on, and the next start finds them. Cgroups are its to divide."""
    unit = directives("headrace-agent.service")
    assert unit["KillMode"] == ["process"]
    assert unit["Delegate"] == ["yes"]
    assert "MemoryDenyWriteExecute" not in unit  # jobs would inherit it, and with it no JIT compiler


def test_the_agent_holds_out_beside_its_jobs() -> None:
    """It weighs more than all jobs together, keeps its memory, is killed last, and not because a child of its was."""
    unit, own, jobs = (directives(each) for each in (UNITS[1], *SLICES))
    assert (unit["Slice"], unit["OOMPolicy"]) == (["headrace.slice"], ["continue"])
    assert int(unit["OOMScoreAdjust"][0]) == LAST_TO_GO
    assert "MemoryMin" in own
    assert int(own["CPUWeight"][0]) > 100 > int(jobs["CPUWeight"][0])
    assert SLICES[1] == SLICE


def test_no_credential_stands_in_a_unit_or_a_command_line() -> None:
    """Units are readable by everybody, command lines by every process."""
    for unit in UNITS:
        found = directives(unit)
        assert not [each for each in found["Environment"] if "TOKEN=" in each or "SECRET" in each or "URL=" in each]
        assert not [each for each in found["ExecStart"] if "token" in each or "://" in each]
    assert directives("headrace-agent.service")["LoadCredential"] == ["token:/etc/headrace/agent.token"]


@pytest.mark.parametrize("unit", UNITS)
def test_a_failed_daemon_is_started_again_but_not_one_that_is_set_wrong(unit: str) -> None:
    """Exit code 2 stays wrong until a person mends it; everything else may mend itself, and for as long as it takes."""
    found = directives(unit)
    assert found["Restart"] == ["always"]
    assert found["RestartPreventExitStatus"] == ["2"]
    assert found["StartLimitIntervalSec"] == ["0"]


@pytest.mark.parametrize(("unit", "most"), [(UNITS[0], 15), (UNITS[1], 75)])
def test_the_exposure_that_systemd_finds_does_not_grow(unit: str, most: int) -> None:
    """systemd's own score, 0 to 100. The agent's is what is left without a mount namespace and with jobs to hold."""
    done = analyze("security", "--offline=yes", "--no-pager", f"--threshold={most}", str(FOLDER / unit))
    assert done.returncode == 0, done.stdout[-500:]


def test_the_coordinator_has_no_capability_and_the_agent_none_over_the_kernel() -> None:
    """Neither loads modules, sets clocks, reads raw devices or reboots."""
    assert capabilities(UNITS[0]) == set()
    never = {"SYS_MODULE", "SYS_TIME", "SYS_RAWIO", "SYS_BOOT", "BPF", "MAC_ADMIN", "AUDIT_CONTROL", "SETFCAP"}
    assert not capabilities(UNITS[1]) & never


@pytest.mark.root
def test_users_and_folders_are_made(tmp_path: Path) -> None:
    """The user that the coordinator's unit names, and folders with the right modes."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    (tmp_path / "etc").mkdir()
    for command in (
        ["systemd-sysusers", f"--root={tmp_path}", str(FOLDER / "sysusers.d/headrace.conf")],
        ["systemd-tmpfiles", f"--root={tmp_path}", "--create", str(FOLDER / "tmpfiles.d/headrace.conf")],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stderr
    users = [line.split(":") for line in (tmp_path / "etc/passwd").read_text().splitlines()]
    user = next(fields for fields in users if fields[0] == "headrace")
    assert directives(UNITS[0])["User"] == [user[0]]
    assert 0 < int(user[2]) < 1000
    assert user[6] == "/usr/sbin/nologin"
    modes = {name: (tmp_path / name).stat().st_mode & 0o777 for name in ("etc/headrace", "run/headrace")}
    assert modes == {"etc/headrace": 0o750, "run/headrace": 0o711}
