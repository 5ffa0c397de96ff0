"""Feeds the loader bytes that a coverage-guided fuzzer makes: `python scripts/fuzz_loader.py --seconds N`.

The loader promises, for any input of at most 1 MiB: it raises nothing but `PipelineError`, takes at most 2 s of
processor time, and at most 200 MiB of memory. What loads is also expanded, under the same promises. The corpus of
the tests is the seed. An input that looks slow or large under the fuzzer's own load is measured again in a process
of its own, `--one FILE`, which is also how a finding is played again.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

MOST_SECONDS, MOST_MIB = 2.0, 200.0
MAX_BYTES = 1 << 20
SHARED = b"templates:\n  t: {image: debian, env: {A: b}}\nenv: {B: c}\ndefaults: {pool: small}\n"
SYNTAX = ("${{ ", " }}", "\n  - ", ": ", "&a ", "*a", "<<: ", "|\n  ", ">-\n  ", "[", "]", "{", "}", "'", '\\"', "# ",
          "matrix.a", "needs.a.outputs.b", "steps.a.outcome", "event.type", "always()", "hash('*')", " == ", " && ",
          "exit:1-2", "log:/a/", "artifact/a", "1h30m", "4GiB", "role:a", "0 3 * * 1-5", "America/Bogota")  # fmt: skip


def try_one(text: bytes) -> bool:
    """Loads and expands; whether it was accepted. Anything but `PipelineError` passes through."""
    from headrace.pipeline import Event, PipelineError, expand, load

    try:
        plan = expand(load(text, "fuzz.yml", {"ci/shared.yml": SHARED, "self.yml": text}.get), Event(branch="main"))
    except PipelineError as error:
        if not error.problems or not all(each.line > 0 and each.column > 0 and each.message for each in error.problems):
            raise RuntimeError("a mistake without its place or its sentence") from error
        return False
    assert plan.jobs
    return True


def measured(text: bytes) -> dict[str, float]:
    """What one input costs: seconds of processor time, and MiB by which the process grew."""
    before, begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    accepted = try_one(text)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return {"seconds": time.process_time() - begun, "mib": grown, "accepted": accepted}


def dictionary() -> str:
    """What a mutation may put in: every key of the language, and bits of its syntax."""
    from headrace.pipeline import language
    from headrace.pipeline.records import Record

    keys = {key for record in vars(language).values() if isinstance(record, Record) for key in record.known}
    words = [f"{key}: " for key in sorted(keys)] + list(SYNTAX)
    return "\n".join('"' + each.replace('"', '\\"').replace("\n", "\\x0a") + '"' for each in words) + "\n"


def alone(text: bytes, folder: Path) -> dict[str, float]:
    """`measured` in a process of its own, which the fuzzer's bookkeeping does not slow down."""
    file = folder / "suspect.yml"
    file.write_bytes(text)
    made = subprocess.run([sys.executable, __file__, "--one", str(file)], capture_output=True, text=True, check=False)
    if made.returncode:
        raise AssertionError(f"{file}: {made.stderr or made.stdout}")
    return dict(json.loads(made.stdout))


def fuzz(folder: Path, arguments: list[str]) -> None:
    """Runs in a child process; never returns. Writes its counts to `counts.json`."""
    import atheris

    with atheris.instrument_imports(include=["headrace.pipeline"]):
        import headrace.pipeline
    assert headrace.pipeline
    try_one(b"stages: [{name: a, jobs: {b: {steps: [{run: c, if: always()}]}}}]")  # what is loaded late is loaded now
    counts = {"inputs": 0, "accepted": 0, "suspects": 0, "slowest_s": 0.0, "largest_mib": 0.0}

    def one(text: bytes) -> None:
        cost = measured(text)
        counts["inputs"] += 1
        counts["accepted"] += cost["accepted"]
        if cost["seconds"] > MOST_SECONDS / 2 or cost["mib"] > MOST_MIB / 2:
            counts["suspects"] += 1
            cost = alone(text, folder)
        counts["slowest_s"] = max(counts["slowest_s"], round(cost["seconds"], 3))
        counts["largest_mib"] = max(counts["largest_mib"], round(cost["mib"], 1))
        if counts["inputs"] % 500 == 0:
            (folder / "counts.json").write_text(json.dumps(counts))
        assert cost["seconds"] <= MOST_SECONDS, f"{cost['seconds']:.2f} s"
        assert cost["mib"] <= MOST_MIB, f"{cost['mib']:.0f} MiB"

    atheris.Setup([sys.argv[0], *arguments], one)
    atheris.Fuzz()


def parent(seconds: int, folder: Path) -> int:
    """Prepares the folder, runs the fuzzer in it, and tells what came of it."""
    corpus, seeds = folder / "corpus", folder / "seeds"
    for each in (corpus, seeds):
        each.mkdir(parents=True, exist_ok=True)
    for file in sorted((ROOT / "tests/pipelines").glob("*/*.yml")):
        (seeds / f"{file.parent.name}_{file.name}").write_bytes(file.read_bytes())
    (folder / "words.dict").write_text(dictionary())
    limits = [
        f"-max_total_time={seconds}",
        "-timeout=60",
        "-rss_limit_mb=4096",
        "-max_len=65536",
        "-print_final_stats=1",
    ]
    flags = [*limits, f"-dict={folder / 'words.dict'}", f"-artifact_prefix={folder}/found-", str(corpus), str(seeds)]
    with (folder / "log.txt").open("w") as log:
        child = [sys.executable, __file__, "--fuzz", str(folder), "--", *flags]
        code = subprocess.run(child, stdout=log, stderr=subprocess.STDOUT, check=False).returncode
    counts = folder / "counts.json"
    print(f"{seconds} s: {counts.read_text() if counts.exists() else 'nothing counted'}")
    print(f"corpus: {len(list(corpus.iterdir()))} inputs in {corpus}; log: {folder / 'log.txt'}")
    found = sorted(folder.glob("found-*"))
    for each in found:
        print(f"a promise is broken: python scripts/fuzz_loader.py --one {each}")
    return 1 if found or code else 0


def main() -> int:
    """Fuzzes, or measures one file."""
    parser = argparse.ArgumentParser(description="Feeds the loader bytes that a coverage-guided fuzzer makes.")
    parser.add_argument("--seconds", type=int, default=1200, help="for how long (default: 1200)")
    parser.add_argument("--folder", type=Path, help="where corpus and findings are kept (default: a new folder)")
    parser.add_argument("--one", type=Path, help="measure one file instead")
    parser.add_argument("--fuzz", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("flags", nargs="*", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        try_one(b"stages: [{name: a, jobs: {b: {steps: [{run: c, if: always()}]}}}]")
        cost = measured(asked.one.read_bytes())
        print(json.dumps(cost))
        return 0
    if asked.fuzz:
        fuzz(asked.fuzz, asked.flags)
    return parent(asked.seconds, asked.folder or Path(tempfile.mkdtemp(prefix="headrace-fuzz-")))


if __name__ == "__main__":
    sys.exit(main())
