{{/* Ports that Ray is told, so that policies can name them; from firstWorker to lastWorker are those of the processes that it starts. */}}
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
# There are no log files to look after: see RAY_LOG_TO_STDERR.
- --include-log-monitor=false
{{- end -}}

{{/* Token and certificate of Ray's own connections. */}}
{{- define "atelier.rayIdentity" -}}
- name: RAY_AUTH_MODE
  value: token
- name: RAY_AUTH_TOKEN_PATH
  value: /etc/atelier/ray/token
{{- if .Values.ray.tls }}
- name: RAY_USE_TLS
  value: "1"
- name: RAY_TLS_SERVER_CERT
  value: /etc/atelier/ray-tls/tls.crt
- name: RAY_TLS_SERVER_KEY
  value: /etc/atelier/ray-tls/tls.key
- name: RAY_TLS_CA_CERT
  value: /etc/atelier/ray-tls/ca.crt
{{- end }}
{{- end -}}

{{- define "atelier.rayIdentityMounts" -}}
- {name: ray, mountPath: /etc/atelier/ray, readOnly: true}
{{- if .Values.ray.tls }}
- {name: ray-tls, mountPath: /etc/atelier/ray-tls, readOnly: true}
{{- end }}
{{- end -}}

{{/* Environment that head and nodes share. */}}
{{- define "atelier.rayEnvironment" -}}
- name: POD_IP
  valueFrom:
    fieldRef: {fieldPath: status.podIP}
{{ include "atelier.rayIdentity" . }}
- name: RAY_USAGE_STATS_ENABLED
  value: "0"
- name: RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS
  value: "1"
# What Ray's processes and replicas log is the pod's log, not files in it.
- name: RAY_LOG_TO_STDERR
  value: "1"
- name: RAY_BACKEND_LOG_LEVEL
  value: warning
- name: ATELIER_LOG_JSON
  value: "true"
{{- include "atelier.tracingEnvironment" . }}
# A node that has lost its head ends and joins the next one.
- name: RAY_gcs_rpc_server_reconnect_timeout_s
  value: "15"
{{- if eq .Values.ray.operator "kuberay" }}
- name: RAY_enable_infeasible_task_early_exit
  value: "true"
# Bytes of a result that is handed over, not left on the node that made it. What Serve keeps of a built application is 120 kB: over the usual
# 100 KiB it stays where it was built, and the autoscaler never finds that node idle.
- name: RAY_max_direct_call_object_size
  value: "1048576"
{{- end }}
- name: HF_HUB_OFFLINE
  value: "1"
- name: TOKENIZERS_PARALLELISM
  value: "false"
{{- end -}}

{{/* Mounts that head and nodes share. */}}
{{- define "atelier.rayMounts" -}}
- {name: tmp, mountPath: /tmp}
- {name: shm, mountPath: /dev/shm}
{{ include "atelier.rayIdentityMounts" . }}
{{- end -}}

{{- define "atelier.rayVolumes" -}}
{{- $name := include "atelier.fullname" . -}}
- name: tmp
  emptyDir: {}
- name: shm
  emptyDir:
    medium: Memory
    # Shared memory of Ray's objects, and some for torch.
    sizeLimit: {{ add (int64 .Values.ray.objectStoreBytes) 67108864 | quote }}
{{ include "atelier.secretVolume" (dict "name" "ray" "secret" (printf "%s-ray" $name)) }}
{{- if .Values.ray.tls }}
- name: ray-tls
  emptyDir: {medium: Memory, sizeLimit: 1Mi}
{{ include "atelier.secretVolume" (dict "name" "ray-ca" "secret" (printf "%s-ray-ca" $name)) }}
{{- end }}
{{- end -}}

{{/* What issues a certificate for the address that this pod has; it alone sees the authority's key. (dict "root" $ "names" list): further
     names that the pod is reached at. */}}
{{- define "atelier.rayCertificate" -}}
{{- if .root.Values.ray.tls -}}
- name: certificate
  {{- include "atelier.containerBase" (dict "root" .root "image" "control") | nindent 2 }}
  command: [python, -m, atelier.kubernetes.ray_certificate]
  args:
    - --host=$(POD_IP)
    {{- range .names }}
    - --host={{ . }}
    {{- end }}
  env:
    - name: POD_IP
      valueFrom:
        fieldRef: {fieldPath: status.podIP}
  resources:
    requests: {cpu: 10m, memory: 64Mi}
    limits: {memory: 256Mi}
  volumeMounts:
    - {name: ray-ca, mountPath: /etc/atelier/ray-ca, readOnly: true}
    - {name: ray-tls, mountPath: /etc/atelier/ray-tls}
{{- end -}}
{{- end -}}

{{/* Names of the head, as a JSON list: its Service, and the one that KubeRay makes for what it adds to pods itself. */}}
{{- define "atelier.rayHeadNames" -}}
{{- $name := include "atelier.fullname" . -}}
{{- $found := list -}}
{{- range ternary (list (printf "%s-ray-head" $name) (printf "%s-head-svc" $name)) (list (printf "%s-ray-head" $name)) (eq .Values.ray.operator "kuberay") -}}
{{- $inside := printf "%s.%s.svc" . $.Release.Namespace -}}
{{- $found = concat $found (list . $inside (printf "%s.%s" $inside $.Values.clusterDomain)) -}}
{{- end -}}
{{- toJson $found -}}
{{- end -}}
