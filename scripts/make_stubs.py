"""Makes the stubs of the wire contract: `headrace/v1/` from `proto/headrace/v1/`, with their types."""

import sys
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    """Generates in place; what is stale shows as a difference in git. Returns protoc's exit code."""
    sources = sorted(str(path.relative_to(ROOT / "proto")) for path in (ROOT / "proto").rglob("*.proto"))
    for old in (ROOT / "headrace" / "v1").glob("*_pb2*"):
        old.unlink()
    bundled = str(files("grpc_tools").joinpath("_proto"))
    arguments = ["protoc", f"-I{ROOT / 'proto'}", f"-I{bundled}"]
    arguments += [f"--{kind}={ROOT}" for kind in ("python_out", "grpc_python_out", "mypy_out", "mypy_grpc_out")]
    return int(protoc.main([*arguments, *sources]))


if __name__ == "__main__":
    sys.exit(main())
