"""Pools' applications, as Serve's config has them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from atelier.engines.profile import DEFAULT_BATCH_SIZES
from atelier.pools import Pool
from atelier.server.ray_cluster import RayCluster

MAX_REQUESTS = 4 * DEFAULT_BATCH_SIZES[-1]
"""At a replica, and as many again waiting at Serve's proxy: some rounds of the largest batch; what is more is refused at once."""


@dataclass(frozen=True, kw_only=True)
class Application:
    """A pool's application on Serve."""

    pool: Pool
    settings_path: str

    def schema(self, *, most: int | None = None, build: int = 0) -> dict[str, Any]:
        """For Serve's config. Nothing here depends on deployments, so that those never replace a replica.

        `most`: replicas, where they are fewer than the pool's own. Another `build` makes Serve try again to start what it has given up.
        """
        pool = self.pool
        return {
            "name": pool.name,
            "route_prefix": f"/{pool.name}",
            "import_path": "atelier.server.replica:build",
            "args": {"settings": self.settings_path, "build": build},
            "deployments": [
                {
                    "name": "Replica",
                    # Never `initial_replicas`: Serve would fall back to it whenever the config changes.
                    "autoscaling_config": {
                        "min_replicas": pool.min_replicas,
                        "max_replicas": pool.max_replicas if most is None else most,
                        "target_ongoing_requests": pool.target_ongoing_requests,
                        "upscale_delay_s": pool.upscale_delay_seconds,
                        "downscale_delay_s": pool.downscale_delay_seconds,
                        "downscale_to_zero_delay_s": pool.downscale_to_zero_delay_seconds,
                    },
                    "max_ongoing_requests": MAX_REQUESTS,
                    "max_queued_requests": MAX_REQUESTS,
                    "graceful_shutdown_timeout_s": 60,
                    "health_check_period_s": 5,
                    "health_check_timeout_s": 30,
                    "ray_actor_options": {
                        "num_cpus": pool.num_cpus or os.cpu_count() or 1,
                        "num_gpus": pool.gpus,
                        "label_selector": {"atelier.dev/pool": pool.name, "atelier.dev/gpu": pool.label},
                    },
                }
            ],
        }


def serve_config(cluster: RayCluster, applications: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Serve's whole config: an application that is not in it is ended."""
    return {
        "proxy_location": "EveryNode",
        "http_options": {"host": cluster.host, "port": cluster.http_port},
        "grpc_options": {
            "port": cluster.grpc_port,
            "grpc_servicer_functions": ["atelier.v1.replica_pb2_grpc.add_SamplingServicer_to_server"],
            "enable_reflection": False,
        },
        "applications": list(applications),
    }
