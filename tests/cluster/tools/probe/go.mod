// What the tests run in pods: a web server, its client and two verbs for files, in one static file.
module atelier.dev/tests/cluster/probe

go 1.26.0
