"""templates/control/claim.yaml"""

from __future__ import annotations

from chart.rendering import profile, render


def test_the_volume_is_of_the_default_class_and_outlives_the_release() -> None:
    claim = profile("default").one("PersistentVolumeClaim", "atelier-data")
    assert claim["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    assert claim["spec"] == {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "20Gi"}}}


def test_its_class_size_and_fate_can_be_set() -> None:
    claim = profile("airgap").one("PersistentVolumeClaim", "studio-data")
    assert claim["metadata"]["annotations"] == {"example.org/backup": "yes", "example.org/page": "platform"}
    assert claim["spec"]["storageClassName"] == "fast" and claim["spec"]["resources"]["requests"]["storage"] == "100Gi"


def test_there_is_none_with_a_database_or_where_one_is_given() -> None:
    assert not profile("ha").all("PersistentVolumeClaim")
    given = render({"persistence": {"existingClaim": "mine"}})
    assert not given.all("PersistentVolumeClaim")
    assert given.pod("control").volume("data")["persistentVolumeClaim"] == {"claimName": "mine"}


def test_one_pod_alone_mounts_it() -> None:
    assert [pod.component for pod in profile("default").pods() if "persistentVolumeClaim" in str(pod.spec["volumes"])] == ["control"]
