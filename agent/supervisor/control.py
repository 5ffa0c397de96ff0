"""The shell texts that run inside of a sandbox. Every odd-looking line has its reason beside it.

Pure, and plain POSIX: dash, bash and busybox ash run the same script.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

BUSYBOX: Final = "/.headrace/busybox"
"""Where a static busybox is mounted when the agent has one: control shell, `env` and a last `sh`."""

MOST_ONE: Final = 131_071
"""Bytes of one `NAME=VALUE` that the kernel takes."""

# INT would end dash and ash as pid 1: ignored there, and given back in the subshell, so that steps can be
# interrupted. No EXIT trap: with one, bash dies of a dozen signals. 3 is read-only: EOF means that the supervisor is
# gone; 4 and 5 are read-write: bytes survive a reader that is gone for a moment, and nothing dies of SIGPIPE.
# Steps run in the foreground (a background child has INT and QUIT ignored for ever), with their own open file
# description of the output, so that one step's O_NONBLOCK does not reach the next. Only builtins report: that
# works at the limit of processes, too.
CONTROL: Final = r"""d=$1
trap '' INT
exec 3<"$d/in" 4<>"$d/out" 5<>"$d/res" </dev/null >&4 2>&1
printf '\nhello %s\n' "$$" >&5
while read -r verb seq nonce <&3; do
  case $verb in
    run)
      ( trap - INT
        printf '\nbegun %s %s\n' "$seq" "$nonce" >&5
        exec 3<&- >/proc/self/fd/4 2>&1 4>&-
        . "$d/$seq/run" )
      printf '\ndone %s %s %s\n' "$seq" "$nonce" "$?" >&5 ;;
    end) exit 0 ;;
  esac
done
exit 70
"""

# 5 is still open here: what is missing is told there, apart from a step's own exit codes 125 and 127.
_LOOK: Final = """missing() {{ printf '\\nmissing %s %s %s\\n' "$seq" "$nonce" "$1" >&5; exit "$2"; }}
look() {{ set -f; IFS=:
  for p in $PATH; do if [ -f "$p/$1" ] && [ -x "$p/$1" ]; then s=$p/$1; return 0; fi; done
  return 1; }}
cd -- {cwd} 2>/dev/null || missing workdir 125
PATH={path}
e=/usr/bin/env
[ -x {busybox} ] && e='{busybox} env'
"""
_SHELLS: Final = {
    "bash": 'look bash || missing shell 127\nset -- "$s" --noprofile --norc -eo pipefail\n',
    "sh": 'if look sh; then set -- "$s" -e; elif [ -x {busybox} ]; then set -- {busybox} sh -e; '
    "else missing shell 127; fi\n",
    "python": 'look python3 || look python || missing shell 127\nset -- "$s"\n',
}
_DEFAULT: Final = 'if look bash; then set -- "$s" --noprofile --norc -eo pipefail; else {sh}fi\n'
_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def quoted(text: str) -> str:
    """One word of the shell, whatever `text` holds (any byte but NUL)."""
    return "'" + text.replace("'", "'\\''") + "'"


def run_file(shell: str, cwd: str, env: Mapping[str, str]) -> str:
    """The file that the control shell sources to become a step. `env` is all that the step will find.

    Assignments stand as arguments of `env -i`, never as `export`: a name such as `a-b`, UID or IFS is no variable
    that a shell would take.
    """
    choose = _DEFAULT.format(sh=_SHELLS["sh"]) if shell == "default" else _SHELLS[shell]
    look = _LOOK.format(cwd=quoted(cwd), path=quoted(env.get("PATH", _PATH)), busybox=BUSYBOX)
    words = " ".join(quoted(f"{name}={value}") for name, value in env.items())
    # `unset` in a subshell's last moment: word splitting of $e is wanted, with the usual IFS.
    start = f'unset IFS; set +f\nexec $e -i {words} "$@" "$d/$seq/script" 5>&-\n'
    return look + choose.format(busybox=BUSYBOX) + start


def too_much(env: Mapping[str, str], most_all: int) -> str:
    """Why the kernel would refuse to start a step with this environment, or the empty string.

    `most_all`: bytes that all arguments together may take, a quarter of the stack limit.
    """
    total = 0
    for name, value in env.items():
        if not name or "=" in name or "\0" in name or "\0" in value:
            return f"the variable {name!r} has a name or a value that no process can be given"
        size = len(f"{name}={value}".encode("utf-8", "surrogateescape"))
        if size > MOST_ONE:
            return f"the variable {name} is {size} bytes long, and the system takes {MOST_ONE}: pass it in a file"
        total += size + 9  # its end, and a pointer to it
    if total > most_all:
        return f"the variables of the step are {total} bytes in all, and the system takes {most_all}: pass files"
    return ""
