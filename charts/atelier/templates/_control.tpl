{{/* Ports of a service by name: what clients call, what workers and replicas call, health in the clear, metrics in the clear. */}}
{{- define "atelier.ports" -}}
{{- $offset := get (dict "server" 0 "trainer" 1 "converter" 2 "compiler" 3) .service -}}
{{- dict "public" (add 7878 $offset) "internal" (add 7888 $offset) "health" (add 7868 $offset) "metrics" (add 7858 $offset) | toJson -}}
{{- end -}}

{{/* Environment that opens ledger and store; for the services and for what migrates. */}}
{{- define "atelier.ledgerEnvironment" -}}
- name: ATELIER_DATA
  value: /data
- name: ATELIER_LOG_JSON
  value: "true"
{{- if include "atelier.scaled" . }}
- name: ATELIER_LEDGER
  valueFrom:
    secretKeyRef:
      name: {{ .Values.ledger.existingSecret | default (printf "%s-ledger" (include "atelier.fullname" .)) }}
      key: {{ ternary .Values.ledger.existingSecretKey "url" (ne .Values.ledger.existingSecret "") }}
- name: ATELIER_STORE
  value: {{ .Values.store.url | quote }}
{{- end }}
{{- end -}}

{{/* Environment of a service: (dict "root" $ "service" "server"). */}}
{{- define "atelier.environment" -}}
{{- $root := .root -}}
{{- $name := include "atelier.fullname" .root -}}
{{- $ports := include "atelier.ports" . | fromJson -}}
{{- include "atelier.ledgerEnvironment" .root }}
- name: ATELIER_LISTEN
  value: "0.0.0.0:{{ $ports.public }}"
- name: ATELIER_INTERNAL_LISTEN
  value: "0.0.0.0:{{ $ports.internal }}"
- name: ATELIER_INTERNAL_HOST
  value: {{ $name }}-{{ .service }}
- name: ATELIER_HEALTH_LISTEN
  value: "0.0.0.0:{{ $ports.health }}"
- name: ATELIER_METRICS_LISTEN
  value: "0.0.0.0:{{ $ports.metrics }}"
- name: ATELIER_DRAIN_SECONDS
  value: {{ .root.Values.control.drainSeconds | quote }}
- name: ATELIER_TLS_CERT
  value: /etc/atelier/tls/tls.crt
- name: ATELIER_TLS_KEY
  value: /etc/atelier/tls/tls.key
- name: ATELIER_TLS_CA
  value: /etc/atelier/tls/ca.crt
- name: ATELIER_TOKEN_FILE
  value: /etc/atelier/token/token
- name: ATELIER_INTERNAL_TOKEN_FILE
  value: /etc/atelier/internal/token
- name: ATELIER_PUBLIC_KEY_FILE
  value: /etc/atelier/public/signing.pub
- name: ATELIER_POOLS_FILE
  value: /etc/atelier/pools/pools.json
{{- if eq .service "server" }}
{{- range $other := list "trainer" "converter" "compiler" }}
{{- $theirs := include "atelier.ports" (dict "service" $other) | fromJson }}
- name: ATELIER_{{ upper $other }}
  value: "{{ ternary (printf "%s-%s" $name $other) "localhost" (eq (include "atelier.scaled" $root) "true") }}:{{ $theirs.public }}"
{{- end }}
- name: ATELIER_RAY_DASHBOARD
  value: http://{{ $name }}-ray-head:8265
- name: ATELIER_RAY_TOKEN_FILE
  value: /etc/atelier/ray/token
- name: ATELIER_SERVE_TARGET
  value: dns:///{{ $name }}-serve:9000
{{- else }}
- name: ATELIER_LAUNCHER
  value: kubernetes
- name: ATELIER_WORKERS_DIR
  value: /etc/atelier/workers
{{- if ne .service "converter" }}
- name: ATELIER_SIGNING_KEY_FILE
  value: /etc/atelier/signing/signing.pem
{{- end }}
{{- end }}
{{- with concat .root.Values.control.extraEnv (get .root.Values .service).extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Environment from Secrets and ConfigMaps: the store's credentials and the operator's own; nothing where there is none. */}}
{{- define "atelier.environmentFrom" -}}
{{- $from := list -}}
{{- with .root.Values.store.existingSecret }}{{ $from = append $from (dict "secretRef" (dict "name" .)) }}{{ end -}}
{{- with concat $from (.extra | default list) -}}
envFrom:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* The container of a service. */}}
{{- define "atelier.container" -}}
{{- $ports := include "atelier.ports" . | fromJson -}}
{{- $given := get .root.Values .service -}}
- name: {{ .service }}
  image: {{ include "atelier.image" (dict "root" .root "image" "control") }}
  imagePullPolicy: {{ .root.Values.images.pullPolicy }}
  args: [serve, {{ .service }}]
  env:
    {{- include "atelier.environment" . | nindent 4 }}
  {{- with include "atelier.environmentFrom" (dict "root" .root "extra" .root.Values.control.extraEnvFrom) }}
  {{- . | nindent 2 }}
  {{- end }}
  ports:
    - {name: {{ .service }}, containerPort: {{ $ports.public }}, protocol: TCP}
    - {name: int-{{ .service }}, containerPort: {{ $ports.internal }}, protocol: TCP}
    - {name: hlt-{{ .service }}, containerPort: {{ $ports.health }}, protocol: TCP}
    - {name: met-{{ .service }}, containerPort: {{ $ports.metrics }}, protocol: TCP}
  startupProbe:
    grpc: {port: {{ $ports.health }}}
    periodSeconds: 2
    failureThreshold: 90
  readinessProbe:
    grpc: {port: {{ $ports.health }}}
    periodSeconds: 5
    timeoutSeconds: 3
    failureThreshold: 2
  livenessProbe:
    grpc: {port: {{ $ports.health }}}
    periodSeconds: 20
    timeoutSeconds: 10
    failureThreshold: 6
  resources:
    {{- toYaml $given.resources | nindent 4 }}
  securityContext:
    {{- include "atelier.containerSecurity" .root | nindent 4 }}
  volumeMounts:
    - {name: data, mountPath: /data}
    - {name: tmp, mountPath: /tmp}
    - {name: tls, mountPath: /etc/atelier/tls, readOnly: true}
    - {name: token, mountPath: /etc/atelier/token, readOnly: true}
    - {name: internal, mountPath: /etc/atelier/internal, readOnly: true}
    - {name: public, mountPath: /etc/atelier/public, readOnly: true}
    - {name: pools, mountPath: /etc/atelier/pools, readOnly: true}
    {{- if eq .service "server" }}
    - {name: ray, mountPath: /etc/atelier/ray, readOnly: true}
    {{- else }}
    - {name: workers, mountPath: /etc/atelier/workers, readOnly: true}
    {{- if ne .service "converter" }}
    - {name: signing, mountPath: /etc/atelier/signing, readOnly: true}
    {{- end }}
    {{- end }}
    {{- with .root.Values.control.extraVolumeMounts }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end -}}

{{/* What brings the ledger's tables to this version, before any service of the pod starts. */}}
{{- define "atelier.migration" -}}
- name: migrate
  image: {{ include "atelier.image" (dict "root" . "image" "control") }}
  imagePullPolicy: {{ .Values.images.pullPolicy }}
  args: [migrate]
  env:
    {{- include "atelier.ledgerEnvironment" . | nindent 4 }}
  resources:
    requests: {cpu: 50m, memory: 128Mi}
    limits: {memory: 512Mi}
  securityContext:
    {{- include "atelier.containerSecurity" . | nindent 4 }}
  volumeMounts:
    - {name: data, mountPath: /data}
    - {name: tmp, mountPath: /tmp}
{{- end -}}

{{/* Volumes of a pod with these services: (dict "root" $ "services" (list "server")). */}}
{{- define "atelier.controlVolumes" -}}
{{- $name := include "atelier.fullname" .root -}}
- name: data
  {{- if include "atelier.scaled" .root }}
  emptyDir: {}
  {{- else }}
  persistentVolumeClaim:
    claimName: {{ .root.Values.persistence.existingClaim | default (printf "%s-data" $name) }}
  {{- end }}
- name: tmp
  emptyDir: {}
{{ include "atelier.secretVolume" (dict "name" "tls" "secret" (include "atelier.tlsSecret" .root)) }}
{{ include "atelier.secretVolume" (dict "name" "token" "secret" (include "atelier.tokenSecret" .root) "items" (dict (ternary .root.Values.auth.existingSecretKey "token" (ne .root.Values.auth.existingSecret "")) "token")) }}
{{ include "atelier.secretVolume" (dict "name" "internal" "secret" (printf "%s-internal" $name)) }}
- name: public
  configMap:
    name: {{ $name }}-public
- name: pools
  configMap:
    name: {{ $name }}-pools
    items:
      - {key: pools.json, path: pools.json}
{{- if has "server" .services }}
{{ include "atelier.secretVolume" (dict "name" "ray" "secret" (printf "%s-ray" $name)) }}
{{- end }}
{{- if or (has "trainer" .services) (has "converter" .services) (has "compiler" .services) }}
- name: workers
  configMap:
    name: {{ $name }}-workers
{{- end }}
{{- if or (has "trainer" .services) (has "compiler" .services) }}
{{ include "atelier.secretVolume" (dict "name" "signing" "secret" (printf "%s-signing" $name)) }}
{{- end }}
{{- with .root.Values.control.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* A Deployment of the control image: (dict "root" $ "component" "control" "services" (list "server" ...) "replicas" 1). */}}
{{- define "atelier.controlDeployment" -}}
{{- $root := .root -}}
{{- $name := include "atelier.fullname" $root -}}
{{- $scaled := include "atelier.scaled" $root -}}
apiVersion: apps/v1
kind: Deployment
metadata:
  {{- include "atelier.metadata" (dict "root" $root "component" .component "name" (printf "%s-%s" $name .component)) | nindent 2 }}
spec:
  replicas: {{ .replicas }}
  revisionHistoryLimit: 3
  strategy:
    {{- if $scaled }}
    type: RollingUpdate
    rollingUpdate: {maxUnavailable: 0, maxSurge: 1}
    {{- else }}
    type: Recreate
    {{- end }}
  selector:
    matchLabels:
      {{- include "atelier.selector" . | nindent 6 }}
  template:
    metadata:
      labels:
        {{- include "atelier.podLabels" (dict "root" $root "component" .component "labels" $root.Values.control.podLabels) | nindent 8 }}
      annotations:
        checksum/pools: {{ include "atelier.pools" $root | sha256sum }}
        checksum/workers: {{ include "atelier.workers" $root | sha256sum }}
        {{- with $root.Values.control.podAnnotations }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
    spec:
      serviceAccountName: {{ $name }}-{{ .component }}
      automountServiceAccountToken: true
      enableServiceLinks: false
      terminationGracePeriodSeconds: {{ $root.Values.control.terminationGracePeriodSeconds }}
      securityContext:
        {{- include "atelier.podSecurity" $root | nindent 8 }}
      {{- with include "atelier.placement" (dict "root" $root "given" $root.Values.control) }}
      {{- . | nindent 6 }}
      {{- end }}
      initContainers:
        {{- include "atelier.migration" $root | nindent 8 }}
      containers:
        {{- range .services }}
        {{- include "atelier.container" (dict "root" $root "service" .) | nindent 8 }}
        {{- end }}
      volumes:
        {{- include "atelier.controlVolumes" . | nindent 8 }}
{{- end -}}
