{{- define "atelier.rayHeadContainer" -}}
{{- $ports := include "atelier.rayPorts" . | fromJson -}}
- name: ray-head
  {{- include "atelier.containerBase" (dict "root" . "image" "node") | nindent 2 }}
  command: [ray, start, --head]
  args:
    {{- include "atelier.rayFlags" . | nindent 4 }}
    - --port={{ $ports.gcs }}
    - --num-cpus=0
    - --num-gpus=0
    - --include-dashboard=true
    - --dashboard-host=0.0.0.0
    - --dashboard-port={{ $ports.dashboard }}
    - --ray-client-server-port={{ $ports.client }}
    # No autoscaler in this container: the server scales nodes, or KubeRay's autoscaler does, in a container of its own.
    - --no-monitor
  env:
    {{- include "atelier.overlaid" (dict "own" (include "atelier.rayEnvironment" .) "extras" (list .Values.ray.head.extraEnv)) | nindent 4 }}
  ports:
    - {name: gcs-server, containerPort: {{ $ports.gcs }}, protocol: TCP}
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
    {{- toYaml .Values.ray.head.resources | nindent 4 }}
  volumeMounts:
    {{- include "atelier.rayMounts" . | nindent 4 }}
{{- end -}}

{{/* Pod of the head, which runs no replica. */}}
{{- define "atelier.rayHead" -}}
metadata:
  labels:
    {{- include "atelier.podLabels" (dict "root" . "component" "ray-head" "labels" (merge (dict "atelier.dev/serve" "proxy") .Values.ray.head.podLabels)) | nindent 4 }}
  {{- with include "atelier.podAnnotations" (dict "own" dict "given" .Values.ray.head) }}
  {{- . | nindent 2 }}
  {{- end }}
spec:
  {{- include "atelier.pod" (dict
    "root" . "given" .Values.ray.head "component" "ray-head" "account" (printf "%s-ray-head" (include "atelier.fullname" .))
    "token" (eq .Values.ray.operator "kuberay") "graceSeconds" 30
    "initContainers" (include "atelier.rayCertificate" (dict "root" . "names" (include "atelier.rayHeadNames" . | fromJsonArray)))
    "containers" (include "atelier.rayHeadContainer" .)
    "volumes" (include "atelier.rayVolumes" .)
  ) | nindent 2 }}
{{- end -}}
