"""How pools and deployments stand: what a scrape of metrics asks the server."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from atelier.server.deployments import DeploymentLedger
from atelier.server.pool import Pools
from atelier.v1 import server_pb2


@dataclass(frozen=True, kw_only=True)
class Standing:
    """By a pool's name: replicas that report, and how many Serve wants. By state: deployments."""

    replicas: Mapping[str, int]
    targets: Mapping[str, int]
    deployments: Mapping[str, int]


def standing(deployments: DeploymentLedger, pools: Pools) -> Standing:
    """As the ledger has it now. Raises as `Database.transaction`."""
    states = Counter(pools.status(deployment).state for deployment in deployments.all())
    return Standing(
        replicas={pool: len(pools.reports(pool)) for pool in pools.by_name},
        targets={pool: pools.state(pool).target for pool in pools.by_name},
        deployments={
            name.removeprefix("DEPLOYMENT_STATE_"): states[number]
            for name, number in server_pb2.DeploymentState.items()
            if number != server_pb2.DEPLOYMENT_STATE_UNSPECIFIED
        },
    )
