"""Regenerates the Python of the `.proto` files beside it; `make generate` and `make check` call it.

`python -m flexpert_proto.generate` rewrites; with `--check` it only compares and exits with 1 when stale.
"""

import sys
import tempfile
from importlib.resources import files
from pathlib import Path

PACKAGE = Path(__file__).parent
GENERATED = ("*_pb2.py", "*_pb2.pyi", "*_pb2_grpc.py", "*_pb2_grpc.pyi")


def compile_into(folder: Path) -> None:
    """Run protoc with the grpc and mypy plug-ins on every `.proto`, writing a package tree under `folder`."""
    from grpc_tools import protoc

    include = str(files("grpc_tools") / "_proto")
    sources = sorted(str(path.relative_to(PACKAGE.parent)) for path in PACKAGE.glob("*.proto"))
    outputs = [f"--{plugin}_out={folder}" for plugin in ("python", "grpc_python", "mypy", "mypy_grpc")]
    status = protoc.main(["protoc", f"-I{PACKAGE.parent}", f"-I{include}", *outputs, *sources])
    if status:
        raise SystemExit(f"protoc failed with status {status}")


def generated_files(folder: Path) -> dict[str, str]:
    """Text of every generated file in `folder`, by name."""
    return {path.name: path.read_text() for pattern in GENERATED for path in folder.glob(pattern)}


def main() -> int:
    """Rewrite the generated files, or with `--check` report those that differ."""
    with tempfile.TemporaryDirectory() as scratch:
        compile_into(Path(scratch))
        fresh = generated_files(Path(scratch) / PACKAGE.name)
    current = generated_files(PACKAGE)
    stale = sorted(name for name in fresh.keys() | current.keys() if fresh.get(name) != current.get(name))
    if "--check" in sys.argv[1:]:
        for name in stale:
            print(f"{name} is stale: run `make generate`")
        return 1 if stale else 0
    for name in stale:
        if name in fresh:
            (PACKAGE / name).write_text(fresh[name])
        else:
            (PACKAGE / name).unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main())
