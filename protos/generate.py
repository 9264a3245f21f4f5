"""Generates services/atelier/v1 from protos/atelier/v1; `--check` only says whether what is committed is what would be generated."""

from __future__ import annotations

import site
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

PROTOS = Path(__file__).parent
OUT = PROTOS.parent / "services"


def generate(out: Path) -> None:
    """Writes messages, services and their stubs below `out`."""
    includes = [PROTOS, *site.getsitepackages(), files("grpc_tools") / "_proto"]
    outputs = [f"--{name}={out}" for name in ("python_out", "grpc_python_out")]
    outputs += [f"--{name}=quiet:{out}" for name in ("mypy_out", "mypy_grpc_out")]
    sources = [str(path.relative_to(PROTOS)) for path in sorted((PROTOS / "atelier" / "v1").glob("*.proto"))]
    if protoc.main(["protoc", *(f"-I{path}" for path in includes), *outputs, *sources]) != 0:
        raise SystemExit("protoc failed")


def drift(out: Path) -> list[str]:
    """Generated files that differ from the committed ones."""
    names = {path.name for folder in (out, OUT) for path in (folder / "atelier" / "v1").glob("*_pb2*")}

    def content(folder: Path, name: str) -> bytes:
        path = folder / "atelier" / "v1" / name
        return path.read_bytes() if path.exists() else b""

    return sorted(name for name in names if content(out, name) != content(OUT, name))


def main() -> None:
    """The command."""
    if "--check" not in sys.argv:
        generate(OUT)
        return
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        changed = drift(Path(folder))
    if changed:
        raise SystemExit(f"run `make protos`: generated code is not up to date: {', '.join(changed)}")


if __name__ == "__main__":
    main()
