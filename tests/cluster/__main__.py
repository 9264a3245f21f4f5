"""`make cluster`, `make cluster-down`; `python -m cluster env` for a shell, `python -m cluster images` for Atelier's images."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from shlex import quote

from cluster import delivery, images, machine, nodes, tools
from cluster.place import NoFreePort, Place, default_place
from cluster.processes import PartFailed

EXPECTED = (machine.NotRoot, machine.StillMounted, tools.MissingTool, NoFreePort, PartFailed, nodes.NotReady, delivery.NoImages)


def main() -> None:
    """One verb; an expected failure is one sentence."""
    parser = argparse.ArgumentParser(prog="python -m cluster", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("up", help="a cluster that answers: that of KUBECONFIG, else one on this machine")
    verbs.add_parser("down", help="removes the cluster of this machine, but not the cache")
    verbs.add_parser("env", help='prints what a shell needs: eval "$(python -m cluster env)"')
    built = verbs.add_parser("images", help="builds Atelier's images as far as they are stale, and brings in what is new of them")
    built.add_argument("--only", action="append", choices=delivery.NAMES, help="some of them")
    verbs.add_parser("load", help="imports an image from a docker or OCI archive").add_argument("archive", type=Path)
    asked = parser.parse_args()
    place = default_place()
    try:
        if asked.verb == "up":
            _up(place)
        elif asked.verb == "down":
            machine.down(place)
        elif asked.verb == "env":
            foreign = _foreign(place)
            theirs = foreign and machine.answering(place, foreign) is not None
            print(_environment(place, foreign if theirs else str(place.kubeconfig)))
        elif asked.verb == "images":
            _images(place, asked.only or ())
        else:
            images.load(place, asked.archive)
    except EXPECTED as error:
        sys.exit(f"cluster: {error}")
    except subprocess.CalledProcessError as error:
        sys.exit(f"cluster: `{' '.join(map(str, error.cmd))}` failed\n{error.stderr or ''}")


def _up(place: Place) -> None:
    began = time.monotonic()
    if foreign := _foreign(place):
        tools.build(place, {name for name in ("helm", "kubectl") if not tools.program(name)})
        listed = machine.answering(place, foreign)
        if listed is not None:
            print(f"KUBECONFIG names a cluster that answers; it is used and nothing is started:\n{listed}\n{_environment(place, foreign)}")
            return
        print(f"{foreign} (KUBECONFIG) names no cluster that answers; one is started on this machine", flush=True)
    started = machine.up(place)
    print(f"the cluster is up ({time.monotonic() - began:.0f} s; started: {', '.join(started) or 'nothing, all of it ran'})")
    print("`make cluster-down` removes it; Atelier's images come by `make cluster-images`; type next:")
    for line in (_environment(place, str(place.kubeconfig)), "kubectl get nodes", "helm install atelier charts/atelier"):
        print(f"  {line}")


def _images(place: Place, only: Sequence[str]) -> None:
    began = time.monotonic()
    if (foreign := _foreign(place)) and machine.answering(place, foreign) is not None:
        print("KUBECONFIG names another cluster: `make images`, then load them with its own tool, or push them")
        print("to a registry that it pulls from and name that in ATELIER_IMAGE_REGISTRY")
        return
    new = delivery.bring_in(place, only)
    print(f"the cluster has the images of the code as it is ({time.monotonic() - began:.0f} s; {new} new layers)")


def _foreign(place: Place) -> str:
    """The kubeconfig of somebody else's cluster."""
    named = os.environ.get("KUBECONFIG", "")
    return "" if named == str(place.kubeconfig) else named


def _environment(place: Place, kubeconfig: str) -> str:
    return f"export KUBECONFIG={quote(kubeconfig)} PATH={quote(str(place.bin))}:$PATH"


if __name__ == "__main__":
    main()
