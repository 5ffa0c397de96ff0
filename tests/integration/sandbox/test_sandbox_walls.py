"""What a job cannot see or do, and what it can, in both kinds of sandbox. The job is taken to be hostile."""

from __future__ import annotations

import os
import socket
import textwrap
from pathlib import Path

import pytest

from agent.problems import JobProblem
from headrace.pipeline.plan import SandboxKind
from tests.harness.sandbox_world import FIRST_UID, World, bubblewrap

pytestmark = [pytest.mark.root, pytest.mark.docker]


def python(script: str) -> str:
    """A step that runs a Python script."""
    return f"python3 - <<'END'\n{textwrap.dedent(script)}\nEND\n"


async def test_a_job_works_in_its_workspace_with_its_tools(world: World) -> None:
    """The point of it all: scripts run, write, read, and their exit codes come back."""
    job = await world.start()
    ran = await job.run("pwd; echo made > made; python3 -c 'print(6 * 7)'; touch /tmp/x \"$HOME/y\"; id -u; exit 7")
    uid = "1000" if world.sandbox.kind is SandboxKind.BUBBLEWRAP else "0"
    assert (ran.out.split(), ran.code) == (["/workspace", "42", uid], 7)
    workspace = world.folder / "101" / "w"
    assert (workspace / "made").read_text() == "made\n"
    owner = FIRST_UID if world.sandbox.kind is SandboxKind.BUBBLEWRAP else 0
    assert (workspace / "made").stat().st_uid == owner


async def test_a_job_cannot_read_what_the_host_keeps(world: World, tmp_path: Path) -> None:
    """Password hashes, other attempts' folders, the agent's own files and root's home are not there at all."""
    secret = tmp_path / "secret"
    secret.write_text("host-secret")
    job = await world.start()
    shadow = Path("/etc/shadow").read_text().splitlines()[0]
    ran = await job.run(
        f"cat /etc/shadow {secret} /proc/1/root{secret} /proc/1/cwd{secret} 2>&1 || true; ls -A /root /run/netns"
        " /var/lib/docker /home/* 2>&1 || true; find / -name 'docker.sock' 2>/dev/null"
    )
    assert "host-secret" not in ran.out
    assert shadow not in ran.out
    assert "docker.sock" not in ran.out
    in_images = {".bashrc", ".profile", ".pyenv"}  # Debian's own, and the way to the tools that are shown
    at_home = {file.name for file in Path("/root").iterdir()} - in_images
    assert not at_home & set(ran.out.split())


async def test_a_job_sees_its_own_processes_alone(world: World) -> None:
    """A pid namespace of its own: nobody else's command line or environment."""
    job = await world.start()
    ran = await job.run("cd /proc; for p in [0-9]*; do tr '\\0' ' ' < $p/cmdline 2>/dev/null; echo; done")
    lines = {line.strip() for line in ran.out.splitlines() if line.strip()}
    assert len(lines) <= 4, lines
    assert not any("pytest" in line for line in lines)


async def test_nothing_of_the_agents_environment_reaches_a_job(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token in the agent's environment must be found neither in a step's nor in the control shell's."""
    monkeypatch.setenv("HEADRACE_TOKEN", "token-of-the-agent")
    job = await world.start()
    ran = await job.run("env; cat /proc/[0-9]*/environ | tr '\\0' '\\n'")
    assert "token-of-the-agent" not in ran.out


async def test_a_job_gets_no_more_rights(world: World) -> None:
    """No capability, no new privileges, no user namespace, no mount, no remount, no change of uid."""
    job = await world.start()
    ran = await job.run("grep -E '^(Cap|NoNew|Seccomp:)' /proc/self/status")
    facts = dict(line.split(":\t", 1) for line in ran.out.splitlines())
    assert {facts[name] for name in ("CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
    assert (facts["NoNewPrivs"], facts["Seccomp"].strip()) == ("1", "2")
    for forbidden in (
        "unshare --user true",
        "unshare --mount true",
        "mount -t tmpfs none /tmp",
        "mount -o remount,rw /hr",
        "mount -o remount,rw /",
        "touch /hr/control",
        "rm /hr/1",
        "chroot / true",
        "mknod /tmp/null c 1 3",
        "setpriv --reuid 12345 true",
    ):
        assert (await job.run(forbidden)).code != 0, forbidden


async def test_a_root_agent_without_slot_uids_runs_no_job(bubblewrap_world: World) -> None:
    """Root outside of a sandbox is root once the sandbox has a hole."""
    sandbox = bubblewrap(bubblewrap_world.folder / "s", "test-rootless")
    sandbox._staging = None
    ability = await sandbox.ability()
    assert ability.networks == frozenset()
    assert "a uid of their own" in ability.why_not
    with pytest.raises(JobProblem):
        await sandbox.prepare(bubblewrap_world.request())


async def test_the_programs_of_the_machine_cannot_be_changed(bubblewrap_world: World) -> None:
    """`/usr` and the tools are the host's own: read-only for every job."""
    job = await bubblewrap_world.start()
    for place in ("/usr", "/usr/bin", "/etc", "/", "/dev", Path(os.__file__).parent):
        assert (await job.run(f"touch {place}/x")).code != 0, place


async def test_system_calls_of_the_table_are_refused(world: World) -> None:
    """The filter is in force: odd socket families, asynchronous rings, keys, terminals."""
    job = await world.start()
    ran = await job.run(
        python("""
        import ctypes, errno, fcntl, os, socket
        libc = ctypes.CDLL(None, use_errno=True)
        for family in (15, 17, 38, 40, 44):
            try: socket.socket(family, socket.SOCK_DGRAM); print("open", family)
            except OSError as e: assert e.errno == errno.EAFNOSUPPORT, (family, e)
        try: socket.socket(16, socket.SOCK_RAW, 9); print("audit open")
        except OSError as e: assert e.errno == errno.EAFNOSUPPORT, e
        for family in (1, 2, 10): socket.socket(family, socket.SOCK_STREAM).close()
        for number, wanted in ((425, errno.ENOSYS), (435, errno.ENOSYS), (321, errno.EPERM), (298, errno.EPERM),
                               (323, errno.EPERM), (250, errno.EPERM), (165, errno.EPERM)):
            ctypes.set_errno(0)
            assert libc.syscall(number, 0, 0, 0, 0, 0) == -1, number
            assert ctypes.get_errno() == wanted, (number, ctypes.get_errno())
        try: fcntl.ioctl(os.open("/dev/null", os.O_RDWR), 0x5412, b"x")
        except OSError as e: assert e.errno == errno.EPERM, e
        import threading; t = threading.Thread(target=print, args=("thread",)); t.start(); t.join()
        """)
    )
    assert (ran.code, ran.out) == (0, "thread\n")


async def test_a_job_without_network_reaches_nothing_not_even_this_host(world: World) -> None:
    """Neither a service on the host's loopback nor one on an abstract socket."""
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as abstract:
        abstract.bind("\0headrace-test-abstract")
        abstract.listen()
        job = await world.start()
        ran = await job.run(
            python(f"""
            import socket
            for family, where in ((2, ("127.0.0.1", {tcp.getsockname()[1]})), (1, "\\0headrace-test-abstract"),
                                  (2, ("192.0.2.1", 80)), (2, ("1.1.1.1", 53))):
                try:
                    s = socket.socket(family, socket.SOCK_STREAM); s.settimeout(2); s.connect(where)
                    print("reached", where)
                except OSError: pass
            print(sorted(name for _, name in socket.if_nameindex()))
            """)
        )
    assert (ran.code, ran.out.split("\n")[0]) == (0, "['lo']")


async def test_a_step_that_kills_everything_does_not_end_the_sandbox(world: World) -> None:
    """`kill -9 -1` reaches all but pid 1, which is the control shell itself."""
    job = await world.start()
    assert (await job.run("kill -9 -1; sleep 5")).code in (1, 137)
    assert (await job.run("echo still here")).out == "still here\n"
