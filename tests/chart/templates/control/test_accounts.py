"""templates/control/accounts.yaml"""

from __future__ import annotations

from chart.rendering import profile, render


def test_each_part_has_an_account_of_its_own_and_none_mounts_a_token_by_default() -> None:
    assert profile("default").names("ServiceAccount") == {
        "atelier-control", "atelier-worker", "atelier-ray-head", "atelier-ray-node", "atelier-client", "atelier-credentials",
    }  # fmt: skip
    assert {"atelier-server", "atelier-trainer", "atelier-converter", "atelier-compiler"} <= profile("ha").names("ServiceAccount")


def test_accounts_may_carry_an_identity_or_be_there_already() -> None:
    role = {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/atelier"}
    given = render({"serviceAccounts": {"annotations": role}})
    assert given.one("ServiceAccount", "atelier-worker")["metadata"]["annotations"] == role
    without = render({"serviceAccounts": {"create": False}})
    assert without.names("ServiceAccount") == {"atelier-credentials"}  # the hook's goes with the hook
    assert without.pod("control").spec["serviceAccountName"] == "atelier-control"
