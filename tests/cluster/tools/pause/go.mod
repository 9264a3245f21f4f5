// What holds a pod's namespaces open: the sandbox image of the test cluster.
module atelier.dev/tests/cluster/pause

go 1.26.0
