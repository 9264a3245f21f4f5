{{/* Ports that Ray is told, so that policies can name them; the range is of the processes that Ray starts. */}}
{{- define "atelier.rayPorts" -}}
{{- dict "gcs" 6379 "nodeManager" 6380 "objectManager" 6381 "runtimeEnv" 6382 "client" 10001 "agent" 52365 "agentGrpc" 52366 "dashboard" 8265
  "metrics" 8080 "http" 8000 "grpc" 9000 "firstWorker" 10100 "lastWorker" 10299 | toJson -}}
{{- end -}}

{{/* Flags that head and nodes share. */}}
{{- define "atelier.rayFlags" -}}
{{- $ports := include "atelier.rayPorts" . | fromJson -}}
- --block
- --disable-usage-stats
- --node-ip-address=$(POD_IP)
- --node-manager-port={{ $ports.nodeManager }}
- --object-manager-port={{ $ports.objectManager }}
- --runtime-env-agent-port={{ $ports.runtimeEnv }}
- --dashboard-agent-listen-port={{ $ports.agent }}
- --dashboard-agent-grpc-port={{ $ports.agentGrpc }}
- --metrics-export-port={{ $ports.metrics }}
- --min-worker-port={{ $ports.firstWorker }}
- --max-worker-port={{ $ports.lastWorker }}
- --object-store-memory={{ int64 .Values.ray.objectStoreBytes }}
{{- end -}}

{{/* Environment that head and nodes share. */}}
{{- define "atelier.rayEnvironment" -}}
- name: POD_IP
  valueFrom:
    fieldRef: {fieldPath: status.podIP}
- name: RAY_AUTH_MODE
  value: token
- name: RAY_AUTH_TOKEN_PATH
  value: /etc/atelier/ray/token
- name: RAY_USAGE_STATS_ENABLED
  value: "0"
- name: RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS
  value: "1"
- name: HF_HUB_OFFLINE
  value: "1"
- name: TOKENIZERS_PARALLELISM
  value: "false"
{{- end -}}

{{/* Mounts that head and nodes share. */}}
{{- define "atelier.rayMounts" -}}
- {name: tmp, mountPath: /tmp}
- {name: shm, mountPath: /dev/shm}
- {name: ray, mountPath: /etc/atelier/ray, readOnly: true}
{{- end -}}

{{- define "atelier.rayVolumes" -}}
- name: tmp
  emptyDir: {}
- name: shm
  emptyDir:
    medium: Memory
    sizeLimit: {{ add (int64 .Values.ray.objectStoreBytes) 67108864 | quote }}
{{ include "atelier.secretVolume" (dict "name" "ray" "secret" (printf "%s-ray" (include "atelier.fullname" .))) }}
{{- end -}}

{{/* Pod of the head: it runs no replica. */}}
{{- define "atelier.rayHead" -}}
{{- $ports := include "atelier.rayPorts" . | fromJson -}}
metadata:
  labels:
    {{- include "atelier.podLabels" (dict "root" . "component" "ray-head") | nindent 4 }}
    atelier.dev/serve: proxy
spec:
  serviceAccountName: {{ include "atelier.fullname" . }}-ray
  automountServiceAccountToken: false
  enableServiceLinks: false
  terminationGracePeriodSeconds: 30
  securityContext:
    {{- include "atelier.podSecurity" . | nindent 4 }}
  {{- with include "atelier.placement" (dict "root" . "given" dict) }}
  {{- . | nindent 2 }}
  {{- end }}
  containers:
    - name: ray-head
      image: {{ include "atelier.image" (dict "root" . "image" "node") }}
      imagePullPolicy: {{ .Values.images.pullPolicy }}
      command: [ray, start, --head]
      args:
        {{- include "atelier.rayFlags" . | nindent 8 }}
        - --port={{ $ports.gcs }}
        - --num-cpus=0
        - --include-dashboard=true
        - --dashboard-host=0.0.0.0
        - --dashboard-port={{ $ports.dashboard }}
        - --ray-client-server-port={{ $ports.client }}
        - --temp-dir=/tmp/r
      env:
        {{- include "atelier.rayEnvironment" . | nindent 8 }}
      ports:
        - {name: gcs, containerPort: {{ $ports.gcs }}, protocol: TCP}
        - {name: dashboard, containerPort: {{ $ports.dashboard }}, protocol: TCP}
        - {name: metrics, containerPort: {{ $ports.metrics }}, protocol: TCP}
        - {name: serve, containerPort: {{ $ports.http }}, protocol: TCP}
        - {name: serve-grpc, containerPort: {{ $ports.grpc }}, protocol: TCP}
      startupProbe:
        httpGet: {path: /api/gcs_healthz, port: dashboard}
        periodSeconds: 3
        timeoutSeconds: 5
        failureThreshold: 60
      readinessProbe:
        httpGet: {path: /api/gcs_healthz, port: dashboard}
        periodSeconds: 5
        timeoutSeconds: 5
        failureThreshold: 3
      livenessProbe:
        httpGet: {path: /api/gcs_healthz, port: dashboard}
        periodSeconds: 15
        timeoutSeconds: 10
        failureThreshold: 6
      resources:
        {{- toYaml .Values.ray.head.resources | nindent 8 }}
      securityContext:
        {{- include "atelier.containerSecurity" . | nindent 8 }}
      volumeMounts:
        {{- include "atelier.rayMounts" . | nindent 8 }}
  volumes:
    {{- include "atelier.rayVolumes" . | nindent 4 }}
{{- end -}}

{{/* Pod of a pool's node: (dict "root" $ "pool" {...}). It is ready while it has a replica. */}}
{{- define "atelier.rayNode" -}}
{{- $root := .root -}}
{{- $pool := .pool -}}
{{- $name := include "atelier.fullname" $root -}}
{{- $ports := include "atelier.rayPorts" $root | fromJson -}}
{{- $product := ternary (dict "nvidia.com/gpu.product" $pool.gpu) dict (ne $pool.gpu "") -}}
{{- $placement := dict "nodeSelector" (merge (dict) $product $pool.nodeSelector) "tolerations" $pool.tolerations -}}
metadata:
  labels:
    {{- include "atelier.podLabels" (dict "root" $root "component" "ray-node") | nindent 4 }}
    atelier.dev/serve: proxy
    atelier.dev/pool: {{ $pool.name }}
    atelier.dev/gpu: {{ $pool.gpu | default "cpu" }}
  annotations:
    checksum/replica: {{ include "atelier.replica" . | sha256sum }}
spec:
  serviceAccountName: {{ $name }}-ray
  automountServiceAccountToken: false
  enableServiceLinks: false
  terminationGracePeriodSeconds: {{ $root.Values.ray.nodes.terminationGracePeriodSeconds }}
  securityContext:
    {{- include "atelier.podSecurity" $root | nindent 4 }}
  {{- with include "atelier.placement" (dict "root" $root "given" $placement) }}
  {{- . | nindent 2 }}
  {{- end }}
  initContainers:
    # `ray start` gives up on a head that is not there yet.
    - name: wait
      image: {{ include "atelier.image" (dict "root" $root "image" "node") }}
      imagePullPolicy: {{ $root.Values.images.pullPolicy }}
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
                  time.sleep(2)
        - {{ $name }}-ray-head
        - {{ $ports.gcs | quote }}
      resources:
        requests: {cpu: 10m, memory: 32Mi}
        limits: {memory: 128Mi}
      securityContext:
        {{- include "atelier.containerSecurity" $root | nindent 8 }}
  containers:
    - name: ray-node
      image: {{ include "atelier.image" (dict "root" $root "image" "node") }}
      imagePullPolicy: {{ $root.Values.images.pullPolicy }}
      command: [ray, start]
      args:
        {{- include "atelier.rayFlags" $root | nindent 8 }}
        - --address={{ $name }}-ray-head:{{ $ports.gcs }}
        - --num-cpus={{ $pool.numCpus }}
        - --num-gpus={{ ternary $pool.gpusPerReplica 0 (ne $pool.gpu "") }}
        - --labels=atelier.dev/pool={{ $pool.name }},atelier.dev/gpu={{ $pool.gpu | default "cpu" }}
      env:
        {{- include "atelier.rayEnvironment" $root | nindent 8 }}
      {{- with include "atelier.environmentFrom" (dict "root" $root) }}
      {{- . | nindent 6 }}
      {{- end }}
      ports:
        - {name: metrics, containerPort: {{ $ports.metrics }}, protocol: TCP}
        - {name: serve, containerPort: {{ $ports.http }}, protocol: TCP}
        - {name: serve-grpc, containerPort: {{ $ports.grpc }}, protocol: TCP}
      readinessProbe:
        httpGet: {path: /-/healthz, port: serve}
        periodSeconds: 3
        timeoutSeconds: 5
        failureThreshold: 2
      resources:
        {{- toYaml $pool.resources | nindent 8 }}
      securityContext:
        {{- include "atelier.containerSecurity" $root | nindent 8 }}
      volumeMounts:
        {{- include "atelier.rayMounts" $root | nindent 8 }}
        - {name: cache, mountPath: /cache}
        - {name: replica, mountPath: /etc/atelier/replica, readOnly: true}
        - {name: internal, mountPath: /etc/atelier/internal, readOnly: true}
        - {name: ca, mountPath: /etc/atelier/ca, readOnly: true}
        - {name: public, mountPath: /etc/atelier/public, readOnly: true}
  volumes:
    {{- include "atelier.rayVolumes" $root | nindent 4 }}
    - name: cache
      emptyDir: {}
    - name: replica
      configMap:
        name: {{ $name }}-pools
        items:
          - {key: replica-{{ $pool.name }}.json, path: replica.json}
    {{- include "atelier.secretVolume" (dict "name" "internal" "secret" (printf "%s-internal" $name)) | nindent 4 }}
    {{- include "atelier.authorityVolume" $root | nindent 4 }}
    - name: public
      configMap:
        name: {{ $name }}-public
        items:
          - {key: signing.pub, path: signing.pub}
{{- end -}}
