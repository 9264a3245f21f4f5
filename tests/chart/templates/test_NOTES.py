"""templates/NOTES.txt: what to type next, and what to beware of."""

from __future__ import annotations

import re

from chart.rendering import Rendered, notes, profile, render, values_of


def test_every_object_that_is_named_to_be_typed_is_there() -> None:
    made = {f"secret atelier-{suffix}" for suffix in ("token", "tls")}
    for name in ("default", "ha", "gpu", "kuberay"):
        printed, rendered = notes(values_of(name)), profile(name)
        assert set(re.findall(r"rollout status deployment/(\S+)", printed)) <= rendered.names("Deployment")
        assert set(re.findall(r"port-forward service/(\S+)", printed)) <= rendered.names("Service")
        assert {f"secret {one}" for one in re.findall(r"get secret (\S+)", printed)} <= made


def test_the_first_picture_is_the_lines_as_they_stand() -> None:
    printed = notes()
    assert "kubectl -n studio port-forward service/atelier 7878:7878 &" in printed
    assert 'atelier generate "a noto emoji of a fox on a blue background" --deployment base -o fox.png' in printed
    assert "helm -n studio test atelier" in printed and "atelier deploy " not in printed


def test_where_nothing_is_deployed_the_lines_deploy_first() -> None:
    assert "atelier deploy base --name base\n" in notes({"deployments": []})
    assert "atelier deploy base --name base --pool pools/a10\n" in notes(values_of("gpu"))


def test_secrets_of_the_operator_s_own_are_named() -> None:
    printed = notes(values_of("openshift"))
    assert r"get secret tokens -o jsonpath='{.data.atelier\.txt}'" in printed and "--cert-file" in printed
    assert "From outside: atelier --server https://atelier.example.org:443" in printed


def test_how_a_raycluster_is_upgraded_is_said_where_there_is_one() -> None:
    assert "--force-conflicts" in notes(values_of("kuberay")) and "--force-conflicts" not in notes()


def test_no_secret_is_printed() -> None:
    assert "secret@postgres" not in notes(values_of("everything"))


def test_what_is_open_or_on_one_volume_is_said() -> None:
    assert "all services in one pod" in notes() and "all services in one pod" not in notes(values_of("ha"))
    assert "WARNING" not in notes() and "WARNING: networkPolicy.enabled is false" in notes({"networkPolicy": {"enabled": False}})
    assert "WARNING: the images of compiler and node" in notes({"images": {"node": {"tag": "0.1.1"}}})
    assert "WARNING: the Service is of type NodePort" in notes({"service": {"type": "NodePort"}})


def test_what_uninstall_leaves_and_how_it_is_deleted_is_said() -> None:
    printed = notes()
    assert "kubectl -n studio delete pvc atelier-data" in printed and "leaves the volume and what the hook has made" in printed
    assert "delete pvc" not in notes(values_of("ha")) and "delete pvc" not in notes({"persistence": {"keep": False}})
    selector = "app.kubernetes.io/instance=atelier,app.kubernetes.io/managed-by=atelier-credentials"
    assert selector in printed and f"--instance={_release(render())}" in str(render().pod("credentials").spec)


def _release(rendered: Rendered) -> str:
    return str(rendered.pod("control").labels["app.kubernetes.io/instance"])
