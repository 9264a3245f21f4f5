"""Tests of the Helm chart without a cluster: what it renders for the values in charts/atelier/ci, with Helm 3 and Helm 4."""
