"""Files made to cost much, and what loading and expanding each costs: `python hostile.py` prints it as JSON."""

from __future__ import annotations

# ruff: noqa: UP031 - expressions are full of braces
import json
import resource
import time
from collections.abc import Callable
from typing import Any

from headrace.pipeline import Event, PipelineError, expand, load

CASES: dict[str, Callable[[], bytes]] = {}


def case(make: Callable[[], bytes]) -> Callable[[], bytes]:
    CASES[make.__name__] = make
    return make


def job(**keys: Any) -> dict[str, Any]:
    return {"steps": [{"run": "x"}], **keys}


def pl(jobs: dict[str, Any], **keys: Any) -> dict[str, Any]:
    return {"stages": [{"name": "a", "jobs": jobs}], **keys}


def j(value: Any) -> bytes:
    """JSON is YAML."""
    return json.dumps(value).encode()


@case
def different_expressions() -> bytes:
    return j(pl({"a": job(env={f"A{i}": f"${{{{ branch + '{i}' }}}}" for i in range(1990)})}))


@case
def too_many_expressions() -> bytes:
    return j(pl({"a": job(env={f"A{i}": f"${{{{ branch + '{i}' }}}}" for i in range(4900)})}))


@case
def wrong_expressions() -> bytes:
    return j(pl({"a": job(env={f"A{i}": "${{ brnch%d + '%d' }}" % (i, i) for i in range(4900)})}))


@case
def unknown_variables() -> bytes:
    return j(pl({"a": job(env={f"AAAAAA{i}": "${{ env.AAAAAAB%d }}" % (i,) for i in range(4900)})}))


@case
def a_variable_in_each_expression() -> bytes:
    return j(pl({"a": job(env={f"AAAAAA{i}": "${{ env.AAAAAA%d }}" % (i,) for i in range(1900)})}))


@case
def many_expressions_in_a_text() -> bytes:
    return j(pl({"a": job(env={"A": "${{ branch }}" * 200})}))


@case
def expressions_in_quoted_texts() -> bytes:
    return j(pl({"a": job(env={f"A{i}": "\"${{ branch }} '\\" * 200 for i in range(250)})}))


@case
def expressions_in_blocks() -> bytes:
    return (
        "stages:\n- name: a\n  jobs:\n    a:\n      steps: [{run: x}]\n      env:\n"
        + "".join(f"        A{i}: |\n" + "          x ${{ branch }} y\n" * 200 for i in range(180))
    ).encode()


@case
def expressions_in_folded_texts() -> bytes:
    return (
        "stages:\n- name: a\n  jobs:\n    a:\n      steps: [{run: x}]\n      env:\n"
        + "".join(f"        A{i}: >\n" + "          x ${{ branch }} y\n" * 200 for i in range(180))
    ).encode()


@case
def long_expressions() -> bytes:
    return j(
        pl(
            {
                "a": job(
                    env={
                        f"A{i}": "${{ %s }}" % ("[" + ",".join(["[1].map(x,x)"] * 300) + f",[{i}]]") for i in range(260)
                    }
                )
            }
        )
    )


@case
def names_with_hyphens() -> bytes:
    return j(pl({"a": job(env={f"A{i}": "${{ %s }}" % ("a.a-" * 999 + str(i)) for i in range(260)})}))


@case
def long_paths() -> bytes:
    return j(pl({"a": job(env={f"A{i}": "${{ %s }}" % ("a." * 1900 + "a" + str(i)) for i in range(260)})}))


@case
def dense_needs() -> bytes:
    return j(
        pl(
            {
                f"j{i}": {"needs": [f"j{k}" for k in range(max(0, i - 6), i)], "steps": [{"run": "x"}]}
                for i in range(700)
            }
        )
    )


@case
def needs_that_do_not_exist() -> bytes:
    return j(
        pl(
            {
                f"jobjobjobjob{i}": {"needs": [f"jobjobjobjbo{k}" for k in range(i, i + 6)], "steps": [{"run": "x"}]}
                for i in range(600)
            }
        )
    )


@case
def jobs_that_are_nothing() -> bytes:
    return j(pl({f"j{i}": None for i in range(4900)}))


@case
def many_cycles() -> bytes:
    return j(pl({f"j{i}": {"needs": [f"j{i + 1}"] + [f"j{k}" for k in range(7)], "steps": []} for i in range(800)}))


@case
def long_names() -> bytes:
    return j(pl({"x" * 500000: {"needs": ["a"] * 4000, "steps": [{"run": "x"}]}, "a": job()}))


@case
def excludes_of_every_set_of_keys() -> bytes:
    n = 9
    return j(
        pl(
            {
                f"j{q}": job(
                    matrix={
                        **{f"k{i}": [0, 1] for i in range(n)},
                        "exclude": [
                            {f"k{b}": (m >> b) & 1 for b in range(n) if m2 >> b & 1}
                            for m2 in range(1, 512)
                            for m in (0,)
                        ],
                    }
                )
                for q in range(2)
            }
        )
    )


@case
def a_thousand_excludes() -> bytes:
    return j(
        pl(
            {
                f"j{q}": job(matrix={"a": list(range(1000)), "exclude": [{"a": -i} for i in range(1000)]})
                for q in range(2)
            }
        )
    )


@case
def a_thousand_keys_of_a_matrix() -> bytes:
    return j(pl({f"j{q}": job(matrix={"include": [{f"k{i}": 1} for i in range(1000)]}) for q in range(3)}))


@case
def cells_with_many_expressions() -> bytes:
    return j(
        pl(
            {
                "j": job(
                    matrix={"a": list(range(100)), "b": list(range(10))},
                    env={f"E{i}": "${{ matrix.a + %d }}" % i for i in range(150)},
                )
            }
        )
    )


@case
def cells_with_many_variables() -> bytes:
    return j(pl({"j": job(matrix={"a": list(range(1000))})}, env={f"E{i}": "x" for i in range(3000)}))


@case
def conditions_on_earlier_steps() -> bytes:
    return j(
        pl(
            {
                f"j{q}": {
                    "steps": [
                        {"run": "x", "id": f"s{i}", "if": "steps.s%d.outcome == 'x'" % (i - 1) if i else "true"}
                        for i in range(400)
                    ]
                }
                for q in range(2)
            }
        )
    )


@case
def a_chain_of_templates() -> bytes:
    return j(pl({"a": {"extends": "t2400"}}, templates={f"t{i}": {"extends": f"t{i - 1}"} for i in range(2400)}))


@case
def a_fan_of_templates() -> bytes:
    return j(
        pl(
            {f"a{i}": {"extends": ["t9"] * 90} for i in range(40)},
            templates={
                **{f"t{i}": {"extends": [f"t{i - 1}"] * 90} for i in range(1, 10)},
                "t0": {"env": {f"A{i}": "b" for i in range(400)}},
            },
        )
    )


@case
def a_large_template() -> bytes:
    return j(
        pl(
            {f"a{i}": {"extends": "t0"} for i in range(2000)},
            templates={"t0": {"env": {f"A{i}": "b" for i in range(1000)}, "steps": [{"run": "x"}]}},
        )
    )


@case
def artifacts_of_many_cells() -> bytes:
    return j(
        pl(
            {
                f"a{q}": job(
                    matrix={"include": [{"x": i, "y": i} for i in range(450)]},
                    artifacts=[{"name": "a%d-${{ matrix.x }}-${{ matrix.y }}" % i, "paths": ["x"]} for i in range(100)],
                )
                for q in range(2)
            }
        )
    )


@case
def artifacts_that_nobody_makes() -> bytes:
    return j(
        {
            "stages": [
                {
                    "name": "a",
                    "jobs": {f"a{i}": job(artifacts=[{"name": f"artartart{i}", "paths": ["x"]}]) for i in range(500)},
                },
                {"name": "b", "jobs": {"z": {"steps": [{"use": f"artifact/artartrat{i}"} for i in range(500)]}}},
            ]
        }
    )


@case
def parameters_that_are_not_declared() -> bytes:
    return j(
        pl(
            {"a": job(env={f"A{i}": "${{ params.paramparam%db }}" % i for i in range(1500)})},
            on={"manual": {"parameters": {f"paramparam{i}": {} for i in range(1900)}}},
        )
    )


@case
def unknown_keys() -> bytes:
    return j({f"stagse{i}": 1 for i in range(4990)})


@case
def outputs_of_many_jobs() -> bytes:
    return j(
        {
            "stages": [
                {
                    "name": f"s{k}",
                    "if": "outputs.j0.o1 == 'x'",
                    "jobs": {f"j{k}": job(outputs={f"o{i}": "x" for i in range(40)})},
                }
                for k in range(100)
            ]
        }
    )


@case
def many_patterns() -> bytes:
    return j(pl({f"a{q}": job(retry={"max": 1, "on": [f"log:/a{i}/" for i in range(100)]}) for q in range(90)}))


@case
def heavy_patterns() -> bytes:
    heavy = ["a{1,1000}" * 30, "(a{1,100}){1,9}" * 60, "\\pL{100}", "\\pL" * 200]
    return j(pl({f"a{i}": job(retry={"max": 1, "on": f"log:/{each}/"}) for i, each in enumerate(heavy * 200)}))


@case
def heavy_patterns_in_expressions() -> bytes:
    made = ["branch.matches('" + "a{1,1000}" * 30 + f"{i}')" for i in range(300)]
    return j(pl({f"a{i}": job(**{"if": each}) for i, each in enumerate(made)}))


@case
def long_schedules() -> bytes:
    return j(pl({"a": job()}, on={"schedule": [{"cron": ",".join(["1-2/3"] * 1500) + " * * * *"} for i in range(100)]}))


@case
def quotes_in_quotes() -> bytes:
    return b"a: '" + b"''" * 520000 + b"'"


@case
def many_anchors() -> bytes:
    return b"\n".join(b"k%d: &a%d x" % (i, i) for i in range(4900))


@case
def a_long_list() -> bytes:
    return b"[" + b"a," * 500000 + b"]"


@case
def escapes() -> bytes:
    return b'a: "' + b"\\x41" * 260000 + b'"'


@case
def long_keys() -> bytes:
    return b"".join(b"%d%s: v\n" % (i, b"k" * 1000) for i in range(1000))


@case
def ten_mebibytes() -> bytes:
    return b"a: b\n" * (10 << 18)


def cost(text: bytes) -> tuple[float, bool]:
    """Seconds of processor time, and whether the file was accepted."""
    begun, accepted = time.process_time(), True
    try:
        expand(load(text, "x.yml"), Event())
    except PipelineError:
        accepted = False
    return time.process_time() - begun, accepted


def main() -> None:
    cost(b"stages: [{name: a, jobs: {b: {steps: [{run: c, if: always()}]}}}]")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = {name: cost(make()) for name, make in CASES.items()}
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(json.dumps({"seconds": found, "mib": grown}))


if __name__ == "__main__":
    main()
