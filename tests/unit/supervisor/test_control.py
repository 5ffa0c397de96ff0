"""The run file, run by a real shell: what a step finds is exactly what it was given."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest

from agent.supervisor.control import MOST_ONE, quoted, run_file, too_much

SHELLS = [shell for shell in ("dash", "bash", "busybox") if shutil.which(shell)]
ODD = {
    "PATH": "/usr/bin:/bin",
    "quotes": 'it\'s "$HOME" `id` $(id)\n second line\n',
    "bytes": bytes(range(1, 256)).decode("utf-8", "surrogateescape"),
    "a-b": "no variable of a shell",
    "UID": "7",
    "IFS": "x/",
    "LC_ALL": "nonsense",
    "long": "x" * 100_000,
}


def run(folder: Path, control: str, shell: str, script: str, env: dict[str, str], cwd: str) -> tuple[int, bytes, bytes]:
    """Runs a step as the control shell would. Returns exit code, output, and what the control channel was told."""
    place = folder / "1"
    place.mkdir(exist_ok=True)
    (place / "run").write_bytes(run_file(shell, cwd, env).encode("utf-8", "surrogateescape"))
    (place / "script").write_text(script)
    told = folder / "told"
    argv = [control, "ash"] if control == "busybox" else [control]
    text = 'd=$0 seq=1 nonce=n; exec 5>"$d/told"; . "$d/1/run"'
    done = subprocess.run([*argv, "-c", text, str(folder)], env={}, capture_output=True, check=False)
    return done.returncode, done.stdout, told.read_bytes()


@pytest.mark.parametrize("control", SHELLS)
def test_any_name_and_any_byte_comes_through(tmp_path: Path, control: str) -> None:
    """Variables are data: no shell on the way may read, drop or change one."""
    code, out, _ = run(
        tmp_path, control, "python", "import os; os.write(1, open('/proc/self/environ','rb').read())", ODD, "/"
    )
    wanted = {f"{name}={value}".encode("utf-8", "surrogateescape") for name, value in ODD.items()}
    assert code == 0
    assert {hashlib.md5(v).digest() for v in wanted} == {hashlib.md5(v).digest() for v in out.split(b"\0") if v}


@pytest.mark.parametrize("control", SHELLS)
def test_what_is_missing_is_told_apart_from_a_steps_own_125_and_127(tmp_path: Path, control: str) -> None:
    """A person has to mend another line then."""
    env = {"PATH": "/usr/bin:/bin"}
    assert run(tmp_path, control, "sh", "exit 125", env, "/") == (125, b"", b"")
    assert run(tmp_path, control, "sh", "exit 127", env, "/") == (127, b"", b"")
    assert run(tmp_path, control, "sh", "true", env, "/no such/folder") == (125, b"", b"\nmissing 1 n workdir\n")
    assert run(tmp_path, control, "bash", "true", {"PATH": "/nowhere"}, "/") == (127, b"", b"\nmissing 1 n shell\n")


def test_default_is_bash_where_it_is_and_sh_elsewhere(tmp_path: Path) -> None:
    """The same pipeline runs in an image without bash."""
    only_sh = tmp_path / "bin"
    only_sh.mkdir()
    (only_sh / "sh").symlink_to(shutil.which("dash") or "/bin/sh")
    script = 'echo "${BASH_VERSION:+bash}"'
    assert run(tmp_path, "sh", "default", script, {"PATH": "/usr/bin:/bin"}, "/")[1] == b"bash\n"
    assert run(tmp_path, "sh", "default", script, {"PATH": str(only_sh)}, "/")[1] == b"\n"


def test_quoting_survives_a_shell() -> None:
    """One word in, the same word out."""
    word = "a'b\"c $d `e` \\ \n*"
    assert subprocess.check_output(["sh", "-c", f"printf %s {quoted(word)}"]) == word.encode()


def test_an_environment_that_no_process_can_be_given_is_refused_in_one_sentence() -> None:
    """'Argument list too long' helps nobody."""
    assert too_much({"A": "x" * (MOST_ONE - 2)}, 1 << 21) == ""
    assert "variable A is 131072 bytes long" in too_much({"A": "x" * (MOST_ONE - 1)}, 1 << 21)
    assert "in all" in too_much({f"A{n}": "x" * 100_000 for n in range(30)}, 1 << 21)
    assert "no process can be given" in too_much({"A": "a\0b"}, 1 << 21)
