"""`make bench`: measures Atelier beside what it is compared with, in one run, and writes docs/benchmarks.md."""

from __future__ import annotations

import argparse
import datetime
import importlib
import os
from importlib.metadata import version
from pathlib import Path

from bench.figures import Group

GROUPS = ("unet", "training", "files", "steps", "gateway")
PAGE = Path("docs/benchmarks.md")
PACKAGES = ("torch", "diffusers", "transformers", "peft", "accelerate", "openvino", "ray", "safetensors")


def main() -> None:
    """Runs the groups that are asked for; only a whole run writes the page."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--peers", default="", help="folder with diffusers' examples")
    parser.add_argument("--only", choices=GROUPS, action="append", help="some groups; prints, and writes nothing")
    given = parser.parse_args()
    peers = Path(given.peers) if given.peers else None
    found: list[Group] = []
    for name in given.only or GROUPS:
        found += importlib.import_module(f"bench.{name}").groups(peers)
        print(found[-1].markdown(), flush=True)
    if not given.only:
        PAGE.write_text("\n".join([head(peers), *(group.markdown() for group in found)]))
        print(f"written: {PAGE}")


def head(peers: Path | None) -> str:
    """Machine, versions, and how to repeat it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    facts = dict(line.split(":", 1) for line in lines if ":" in line)
    model = next((value.strip() for name, value in facts.items() if name.strip() == "model name"), "unknown processor")
    flags = next((value.split() for name, value in facts.items() if name.strip() == "flags"), [])
    also = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_tile") if flag in flags]
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    return "\n".join(
        [
            "# Benchmarks",
            "",
            f"Measured {datetime.date.today().isoformat()} on {os.cpu_count()} cores of {model} ({', '.join(also)}), nothing else running.",
            f"{versions}.",
            "",
            "`make bench` measures them anew and writes this page; "
            + ("with `PEERS=DIR`, a folder with diffusers' `examples`." if peers else ""),
            "Every ratio comes from one run in which both sides take turns.",
            "",
        ]
    )


if __name__ == "__main__":
    main()
