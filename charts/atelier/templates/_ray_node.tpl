{{- define "atelier.rayNodeContainer" -}}
{{- $root := .root -}}
{{- $pool := .pool -}}
{{- $nodes := $root.Values.ray.nodes -}}
{{- $ports := include "atelier.rayPorts" $root | fromJson -}}
- name: ray-node
  {{- include "atelier.containerBase" (dict "root" $root "image" "node") | nindent 2 }}
  command: [ray, start]
  args:
    {{- include "atelier.rayFlags" $root | nindent 4 }}
    - --address={{ include "atelier.fullname" $root }}-ray-head:{{ $ports.gcs }}
    - --num-cpus={{ $pool.numCpus }}
    - --num-gpus={{ ternary $pool.gpusPerReplica 0 (ne $pool.gpu "") }}
    - --labels=atelier.dev/pool={{ $pool.name }},atelier.dev/gpu={{ $pool.gpu | default "cpu" }}
  env:
    {{- include "atelier.overlaid" (dict "own" (include "atelier.rayEnvironment" $root) "extras" (list $nodes.extraEnv)) | nindent 4 }}
  {{- with include "atelier.environmentFrom" (dict "root" $root "extra" $nodes.extraEnvFrom) }}
  {{- . | nindent 2 }}
  {{- end }}
  ports:
    - {name: metrics, containerPort: {{ $ports.metrics }}, protocol: TCP}
    - {name: serve, containerPort: {{ $ports.http }}, protocol: TCP}
    - {name: serve-grpc, containerPort: {{ $ports.grpc }}, protocol: TCP}
  # Serve's proxy answers only where there is a replica.
  readinessProbe:
    httpGet: {path: /-/healthz, port: serve}
    periodSeconds: 3
    timeoutSeconds: 5
    failureThreshold: 2
  livenessProbe:
    httpGet: {path: /api/local_raylet_healthz, port: {{ $ports.agent }}}
    initialDelaySeconds: 60
    periodSeconds: 15
    timeoutSeconds: 10
    failureThreshold: 8
  resources:
    {{- toYaml $pool.resources | nindent 4 }}
  volumeMounts:
    {{- include "atelier.rayMounts" $root | nindent 4 }}
    - {name: cache, mountPath: /cache}
    - {name: replica, mountPath: /etc/atelier/replica, readOnly: true}
    - {name: internal, mountPath: /etc/atelier/internal, readOnly: true}
    - {name: public, mountPath: /etc/atelier/public, readOnly: true}
    {{- include "atelier.callerMounts" $root | nindent 4 }}
    {{- with $nodes.extraVolumeMounts }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end -}}

{{/* `ray start` gives up on a head that is not there yet. */}}
{{- define "atelier.rayWait" -}}
- name: wait
  {{- include "atelier.containerBase" (dict "root" .root "image" "node") | nindent 2 }}
  command: [python, -c]
  args:
    - |
      import socket, sys, time
      while True:
          try:
              socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=5).close()
              break
          except OSError as error:
              print(f"waiting for {sys.argv[1]}: {error}", flush=True)
              time.sleep(1)
    - {{ include "atelier.fullname" .root }}-ray-head
    - {{ (include "atelier.rayPorts" .root | fromJson).gcs | quote }}
  resources:
    requests: {cpu: 10m, memory: 32Mi}
    limits: {memory: 128Mi}
{{- end -}}

{{- define "atelier.rayNodeVolumes" -}}
{{- $name := include "atelier.fullname" .root -}}
{{- include "atelier.rayVolumes" .root }}
- name: cache
  emptyDir: {sizeLimit: {{ .root.Values.ray.nodes.cacheSize }}}
{{ include "atelier.mapVolume" (dict "name" "replica" "map" (printf "%s-pools" $name) "items" (dict (printf "replica-%s.json" .pool.name) "replica.json")) }}
{{ include "atelier.secretVolume" (dict "name" "internal" "secret" (printf "%s-internal" $name)) }}
{{ include "atelier.mapVolume" (dict "name" "public" "map" (printf "%s-public" $name) "items" (dict "signing.pub" "signing.pub")) }}
{{ include "atelier.callerVolumes" .root }}
{{- end -}}

{{/* Pod of a pool's node: (dict "root" $ "pool" {...}). It is ready while it has a replica. */}}
{{- define "atelier.rayNode" -}}
{{- $root := .root -}}
{{- $pool := .pool -}}
{{- $nodes := $root.Values.ray.nodes -}}
{{- $product := ternary (dict "nvidia.com/gpu.product" $pool.gpu) dict (ne $pool.gpu "") -}}
{{- $labels := dict "atelier.dev/serve" "proxy" "atelier.dev/pool" $pool.name "atelier.dev/gpu" ($pool.gpu | default "cpu") -}}
{{- $own := dict
  "nodeSelector" (merge (dict) $product $pool.nodeSelector $nodes.nodeSelector)
  "tolerations" (concat $pool.tolerations $nodes.tolerations)
  "resourceClaims" $pool.resourceClaims
-}}
{{- $selector := printf "%s\natelier.dev/pool: %s" (include "atelier.selector" (dict "root" $root "component" "ray-node")) $pool.name -}}
metadata:
  labels:
    {{- include "atelier.podLabels" (dict "root" $root "component" "ray-node" "labels" (merge $labels $nodes.podLabels)) | nindent 4 }}
  {{- include "atelier.podAnnotations" (dict "own" (dict "checksum/replica" (include "atelier.replica" . | sha256sum)) "given" $nodes) | nindent 2 }}
spec:
  {{- $first := compact (list (include "atelier.rayCertificate" (dict "root" $root "names" list)) (include "atelier.rayWait" .)) }}
  {{- include "atelier.pod" (dict
    "root" $root "given" (merge $own $nodes) "component" "ray-node" "account" (printf "%s-ray-node" (include "atelier.fullname" $root))
    "graceSeconds" $nodes.terminationGracePeriodSeconds
    "spread" (ternary $selector "" (gt (int $pool.maxReplicas) 1))
    "initContainers" (join "\n" $first)
    "containers" (include "atelier.rayNodeContainer" .)
    "volumes" (include "atelier.rayNodeVolumes" .)
  ) | nindent 2 }}
{{- end -}}
