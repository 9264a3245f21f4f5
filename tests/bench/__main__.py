"""`make bench`: measures Atelier beside what it is compared with, in one run, and writes docs/benchmarks.md."""

from __future__ import annotations

import argparse
import datetime
import importlib
import os
import re
from importlib.metadata import version
from pathlib import Path

from bench.figures import Asked, Group

GROUPS = ("unet", "training", "files", "steps", "gateway", "control")
PAGE = Path("docs/benchmarks.md")
PACKAGES = ("torch", "diffusers", "openvino")
HEAD = """# Benchmarks

`make bench PEERS=DIR` measures all of this anew and writes this page; DIR holds diffusers' `examples`, whose scripts need torchvision too.
Every ratio comes from one run in which both sides take turns, on a machine that did nothing else.

"""


def main() -> None:
    """Runs the groups that are asked for, and puts each into the page, in place of what it was before."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--peers", default="", help="folder with diffusers' examples")
    parser.add_argument("--only", choices=GROUPS, action="append", help="some groups")
    parser.add_argument("--quick", action="store_true", help="one round, to see that it runs; the page is left as it is")
    given = parser.parse_args()
    asked = Asked(peers=Path(given.peers) if given.peers else None, quick=given.quick)
    for name in given.only or GROUPS:
        for group in importlib.import_module(f"bench.{name}").groups(asked):
            print(group.markdown(), flush=True)
            if not asked.quick:
                write(group)
                print(f"written: {PAGE}", flush=True)


def write(group: Group) -> None:
    """Puts a group into the page."""
    sections = re.split(r"^(?=## )", PAGE.read_text(), flags=re.MULTILINE)[1:] if PAGE.exists() else []
    own = group.markdown().replace("\n\n", f"\n\n{machine()} ", 1)
    places = [index for index, section in enumerate(sections) if section.startswith(f"## {group.title}\n")]
    if places:
        sections[places[0]] = own
    else:
        sections.append(own)
    PAGE.write_text(HEAD + "\n\n".join(section.strip() for section in sections) + "\n")


def machine() -> str:
    """When and where."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    facts = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    flags = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_tile") if flag in facts.get("flags", "").split()]
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    return (
        f"Measured {datetime.date.today().isoformat()} on {os.cpu_count()} cores of {facts.get('model name', 'an unknown processor')} "
        f"({', '.join(flags)}; {versions})."
    )


if __name__ == "__main__":
    main()
