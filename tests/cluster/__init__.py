"""A Kubernetes on one machine, for tests: `make cluster`, `make cluster-down`, `make test-cluster`.

Where `KUBECONFIG` names a cluster that answers (kind, k3d, anything), that one is used and nothing is started. Otherwise the parts of
Kubernetes are built from the Go modules in tools/ into the cache folder, and run as plain processes of this machine (root is needed), with
containerd and runc from the system's packages. All that they listen on is loopback or an interface of their own; all that they write is
below two folders; `make cluster-down` removes it all but the cache.

One node is real: this machine. Three are fake (kwok): two with an NVIDIA-A10, one with an NVIDIA-H100-80GB-HBM3; pods are scheduled to them
and reported as running, but nothing runs. NetworkPolicies are accepted and not enforced.

The modules: place (folders, addresses, ports), tools (what is built or installed), configuration (what the parts read), network, cgroups,
processes (start, wait, stop), parts (the command lines), api (a client in a page), nodes, storage (the default StorageClass), images,
delivery (Atelier's own images), machine (the order of it all); kubectl is what tests call.
"""
