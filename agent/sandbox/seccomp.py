"""A seccomp filter, from the table in `syscalls.py`: as a classic BPF program and as an engine's profile.

The program is what `bwrap --seccomp FD` reads: 8 bytes an instruction (`struct sock_filter`), run by the
kernel on every system call over `struct seccomp_data` (number at 0, architecture at 4, six 64 bit arguments
from 16).
"""

from __future__ import annotations

import errno
import itertools
import json
import struct
from collections.abc import Sequence
from typing import Any, Final

from agent.sandbox.syscalls import (
    HIGHEST,
    LOW_WORD,
    MACHINES,
    NUMBERS,
    RULES,
    Above,
    Condition,
    Machine,
    Masked,
    Rule,
)

# Opcodes of <linux/bpf_common.h>: class, size and mode in one number.
LOAD: Final = 0x20  # BPF_LD | BPF_W | BPF_ABS
AND: Final = 0x54  # BPF_ALU | BPF_AND | BPF_K
IF_EQUAL: Final = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
IF_GREATER: Final = 0x25  # BPF_JMP | BPF_JGT | BPF_K
IF_AT_LEAST: Final = 0x35  # BPF_JMP | BPF_JGE | BPF_K
RETURN: Final = 0x06  # BPF_RET | BPF_K

ALLOW: Final = 0x7FFF_0000
KILL: Final = 0x8000_0000
ERRNO: Final = 0x0005_0000

_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16

Instruction = tuple[int, int, int, int]
"""Opcode, instructions to skip if true, if false, operand."""


class UnknownMachineError(Exception):
    """There is no filter for this architecture, so no sandbox that needs one."""

    def __init__(self, machine: str) -> None:
        known = " and ".join(MACHINES)
        super().__init__(f"there is no system call filter for {machine}: Headrace runs sandboxes on {known}")


def machine(name: str) -> Machine:
    """What is known of `platform.machine()`; raises `UnknownMachineError`."""
    if name not in MACHINES:
        raise UnknownMachineError(name)
    return MACHINES[name]


def program(name: str, rules: Sequence[Rule] = RULES) -> bytes:
    """The filter for machine `name`, as bwrap reads it. Raises `UnknownMachineError`."""
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in instructions(machine(name), rules))


def instructions(target: Machine, rules: Sequence[Rule] = RULES) -> list[Instruction]:
    """The filter's instructions: wrong architecture killed, unknown calls ENOSYS, then the table."""
    code: list[Instruction] = [
        (LOAD, 0, 0, _ARCHITECTURE),
        (IF_EQUAL, 1, 0, target.audit),
        (RETURN, 0, 0, KILL),
        (LOAD, 0, 0, _NUMBER),
    ]
    if target.x32_from is not None:
        code += [(IF_AT_LEAST, 0, 1, target.x32_from), (RETURN, 0, 0, ERRNO | errno.ENOSYS)]
    code += [(IF_GREATER, 0, 1, HIGHEST), (RETURN, 0, 0, ERRNO | errno.ENOSYS)]
    for name, same in itertools.groupby(rules, key=lambda rule: rule.name):
        number = NUMBERS[name][target.column]
        if number is None:
            continue
        body = [instruction for rule in same for instruction in _rule(rule)]
        code.append((IF_EQUAL, 0, len(body) + 1, number))
        code += [*body, (RETURN, 0, 0, ALLOW)]
    code.append((RETURN, 0, 0, ALLOW))
    return code


def _rule(rule: Rule) -> list[Instruction]:
    """One rule of a call whose number has matched: falls through when a condition does not hold."""
    code: list[Instruction] = [(RETURN, 0, 0, ERRNO | rule.error)]
    for condition in reversed(rule.when):
        code = [*_condition(condition, skip=len(code)), *code]
    return code


def _condition(condition: Condition, *, skip: int) -> list[Instruction]:
    """Goes on behind itself when the condition holds, `skip` instructions further when it does not."""
    low = _ARGUMENTS + 8 * condition.index
    match condition:
        case Masked(mask=mask, value=value):
            return [(LOAD, 0, 0, low), (AND, 0, 0, mask), (IF_EQUAL, 0, skip, value)]
        case Above(value=value):
            return [
                (LOAD, 0, 0, low + 4),
                (IF_GREATER, 2, 0, 0),
                (LOAD, 0, 0, low),
                (IF_GREATER, 0, skip, value),
            ]


def profile(name: str, rules: Sequence[Rule] = RULES) -> str:
    """The same table as the JSON profile that an engine takes in `SecurityOpt`. Raises `UnknownMachineError`.

    An architecture that is not listed is killed by libseccomp, x32 too. A call that the engine's libseccomp does
    not know yet is left out by it, and stays open: the container's missing capabilities have to stand alone.
    """
    target = machine(name)
    document: dict[str, Any] = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": [target.libseccomp],
        "syscalls": [_entry(rule) for rule in rules],
    }
    return json.dumps(document, separators=(",", ":"))


def _entry(rule: Rule) -> dict[str, Any]:
    arguments: list[dict[str, Any]] = []
    for condition in rule.when:
        match condition:
            case Masked(index, mask, value):
                arguments.append(
                    {"index": index, "value": mask & LOW_WORD, "valueTwo": value, "op": "SCMP_CMP_MASKED_EQ"}
                )
            case Above(index, value):
                arguments.append({"index": index, "value": value, "op": "SCMP_CMP_GT"})
    return {"names": [rule.name], "action": "SCMP_ACT_ERRNO", "errnoRet": rule.error, "args": arguments}
