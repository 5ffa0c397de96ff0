"""The system call filter: the program that the kernel will run does what the table says, on both machines."""

from __future__ import annotations

import errno
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.sandbox import seccomp
from agent.sandbox.seccomp import AND, IF_AT_LEAST, IF_EQUAL, IF_GREATER, LOAD, RETURN
from agent.sandbox.syscalls import HIGHEST, MACHINES, NUMBERS, RULES, Above, Masked, Rule

WORD = 0xFFFF_FFFF
machines = st.sampled_from(sorted(MACHINES))
arguments = st.lists(
    st.one_of(st.integers(0, 64), st.integers(0, (1 << 64) - 1), st.sampled_from([0x1000_0000, 0x5412, 1 << 32])),
    min_size=6,
    max_size=6,
)


def run(code: list[seccomp.Instruction], number: int, architecture: int, args: list[int]) -> int:
    """What the kernel's machine would answer: classic BPF over `struct seccomp_data`."""
    data = {0: number, 4: architecture}
    for index, value in enumerate(args):
        data[16 + 8 * index], data[20 + 8 * index] = value & WORD, value >> 32
    at, accumulator = 0, 0
    while True:
        opcode, if_true, if_false, operand = code[at]
        at += 1
        if opcode == RETURN:
            return operand
        if opcode == LOAD:
            accumulator = data[operand]
        elif opcode == AND:
            accumulator &= operand
        else:
            holds = {
                IF_EQUAL: accumulator == operand,
                IF_GREATER: accumulator > operand,
                IF_AT_LEAST: accumulator >= operand,
            }[opcode]
            at += if_true if holds else if_false


def meant(rule: Rule, args: list[int]) -> bool:
    """Whether all of a rule's conditions hold, by their documentation."""
    holds = []
    for condition in rule.when:
        match condition:
            case Masked(index, mask, value):
                holds.append(args[index] & WORD & mask == value)
            case Above(index, value):
                holds.append(args[index] > value)
    return all(holds)


@given(machines, st.sampled_from(sorted(NUMBERS)), arguments)
def test_the_program_decides_as_the_table_says(name: str, call: str, args: list[int]) -> None:
    """A jump that is off by one would open a door and no job would ever complain."""
    machine = MACHINES[name]
    number = NUMBERS[call][machine.column]
    if number is None:
        return
    refused = [rule.error for rule in RULES if rule.name == call and meant(rule, args)]
    expected = seccomp.ERRNO | refused[0] if refused else seccomp.ALLOW
    assert run(seccomp.instructions(machine), number, machine.audit, args) == expected


@given(machines, st.integers(0, HIGHEST), arguments)
def test_a_call_that_is_not_in_the_table_is_allowed(name: str, number: int, args: list[int]) -> None:
    """A deny list that denies more breaks builds in ways that nobody understands."""
    machine = MACHINES[name]
    if number in {numbers[machine.column] for numbers in NUMBERS.values()}:
        return
    assert run(seccomp.instructions(machine), number, machine.audit, args) == seccomp.ALLOW


@given(machines, st.integers(0, WORD), arguments)
def test_another_architecture_is_killed(name: str, number: int, args: list[int]) -> None:
    """32 bit calls have other numbers: the table would be read wrongly."""
    machine = MACHINES[name]
    assert run(seccomp.instructions(machine), number, 0x4000_0003, args) == seccomp.KILL


@given(machines, st.integers(HIGHEST + 1, WORD), arguments)
def test_what_is_newer_than_the_table_and_x32_are_not_there(name: str, number: int, args: list[int]) -> None:
    """ENOSYS lets libraries fall back; x32 has the same calls a second time, under other numbers."""
    machine = MACHINES[name]
    assert run(seccomp.instructions(machine), number, machine.audit, args) == seccomp.ERRNO | errno.ENOSYS


@pytest.mark.parametrize("name", sorted(MACHINES))
def test_jumps_fit_into_their_byte(name: str) -> None:
    """The kernel's jump offsets are 8 bits wide."""
    code = seccomp.instructions(MACHINES[name])
    assert all(0 <= skip < 256 for _, *skips, _ in code for skip in skips)
    assert len(seccomp.program(name)) == 8 * len(code) <= 8 * 4096


def test_every_rule_names_a_call_with_a_number() -> None:
    """A mistyped name would be no rule at all."""
    assert {rule.name for rule in RULES} == set(NUMBERS)


def test_the_engines_profile_has_every_rule() -> None:
    """One table for both sandboxes."""
    profile = json.loads(seccomp.profile("x86_64"))
    assert profile["architectures"] == ["SCMP_ARCH_X86_64"]
    assert len(profile["syscalls"]) == len(RULES)
    (unshare,) = (entry for entry in profile["syscalls"] if entry["names"] == ["unshare"])
    flag = 0x1000_0000
    assert unshare["args"] == [{"index": 0, "value": flag, "valueTwo": flag, "op": "SCMP_CMP_MASKED_EQ"}]


def test_an_unknown_machine_is_refused_in_one_sentence() -> None:
    """No filter, no sandbox."""
    with pytest.raises(seccomp.UnknownMachineError, match="no system call filter for riscv64"):
        seccomp.program("riscv64")
