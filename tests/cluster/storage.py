"""The default StorageClass: a folder of this machine for each claim, made by this small controller and removed with its volume.

Kubernetes' own hostPath provisioner makes folders that only root can write, in /tmp; Atelier's containers are not root.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster.api import Api, ApiError
from cluster.place import NODE_NAME

CLASS = "folder"
PROVISIONER = "atelier.dev/folder"
VOLUMES = "/api/v1/persistentvolumes"
PERIOD_SECONDS = 1.0


def create_class(api: Api) -> None:
    """Adds the StorageClass, as the default, unless it is there."""
    content = {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {"name": CLASS, "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}},
        "provisioner": PROVISIONER,
        "reclaimPolicy": "Delete",
        "volumeBindingMode": "Immediate",
    }
    api.create("/apis/storage.k8s.io/v1/storageclasses", content)


def provision(api: Api, folder: Path) -> None:
    """Makes a volume for each claim that waits for one, and removes those whose claim is gone."""
    volumes = [volume for volume in api.get(VOLUMES)["items"] if volume["spec"].get("storageClassName") == CLASS]
    claimed = {volume["spec"]["claimRef"]["uid"] for volume in volumes}
    for claim in api.get("/api/v1/persistentvolumeclaims")["items"]:
        waits = claim["spec"].get("storageClassName") == CLASS and not claim["spec"].get("volumeName")
        if waits and claim["metadata"]["uid"] not in claimed and "deletionTimestamp" not in claim["metadata"]:
            _create_volume(api, folder, claim)
    for volume in volumes:
        if volume["status"].get("phase") in ("Released", "Failed"):
            shutil.rmtree(folder / volume["metadata"]["name"], ignore_errors=True)
            api.delete(f"{VOLUMES}/{volume['metadata']['name']}")


def main() -> None:
    """Provisions until it is stopped: `python -m cluster.storage KUBECONFIG FOLDER`."""
    api, folder = Api(Path(sys.argv[1])), Path(sys.argv[2])
    while True:
        try:
            provision(api, folder)
        except (OSError, ApiError) as error:
            # The API server may be restarting; the next round sees what this one missed.
            print(f"{type(error).__name__}: {error}", flush=True)
        time.sleep(PERIOD_SECONDS)


def _create_volume(api: Api, folder: Path, claim: Mapping[str, Any]) -> None:
    name = f"claim-{claim['metadata']['uid']}"
    path = folder / name
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(0o777)  # whoever the pod runs as; fsGroup does not apply to hostPath
    host = [{"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [NODE_NAME]}]}]
    content = {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name, "annotations": {"pv.kubernetes.io/provisioned-by": PROVISIONER}},
        "spec": {
            "storageClassName": CLASS,
            # The controller manager has no plugin to delete this with: it marks the volume Released, and `provision` removes it.
            "persistentVolumeReclaimPolicy": "Retain",
            "capacity": {"storage": claim["spec"]["resources"]["requests"]["storage"]},
            "accessModes": claim["spec"]["accessModes"],
            "hostPath": {"path": str(path), "type": "Directory"},
            "nodeAffinity": {"required": {"nodeSelectorTerms": host}},
            "claimRef": {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "namespace": claim["metadata"]["namespace"],
                "name": claim["metadata"]["name"],
                "uid": claim["metadata"]["uid"],
            },
        },
    }
    api.create(VOLUMES, content)


if __name__ == "__main__":
    main()
