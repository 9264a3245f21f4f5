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

{{/* Where spans go, for OpenTelemetry's SDK; nothing where they go nowhere. */}}
{{- define "atelier.tracingEnvironment" -}}
{{- with .Values.tracing.endpoint }}
- name: OTEL_EXPORTER_OTLP_ENDPOINT
  value: {{ . | quote }}
- name: OTEL_TRACES_SAMPLER
  value: parentbased_traceidratio
- name: OTEL_TRACES_SAMPLER_ARG
  value: {{ $.Values.tracing.ratio | quote }}
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
{{- include "atelier.tracingEnvironment" .root }}
- name: ATELIER_METRICS_LISTEN
  value: "0.0.0.0:{{ $ports.metrics }}"
- name: ATELIER_DRAIN_SECONDS
  value: {{ .root.Values.control.drainSeconds | quote }}
# What is left of the pod's grace, but for the end of everything else.
- name: ATELIER_GRACE_SECONDS
  value: {{ subf .root.Values.control.terminationGracePeriodSeconds .root.Values.control.drainSeconds 15 | quote }}
- name: ATELIER_TLS_CERT
  value: /etc/atelier/tls/tls.crt
- name: ATELIER_TLS_KEY
  value: /etc/atelier/tls/tls.key
- name: ATELIER_TLS_CA
  value: /etc/atelier/tls/ca.crt
{{- if .root.Values.tls.mutual.caSecret }}
- name: ATELIER_TLS_CLIENT_CA
  value: /etc/atelier/client-ca/ca.crt
{{- end }}
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
{{- end -}}

{{/* The container of a service. */}}
{{- define "atelier.container" -}}
{{- $ports := include "atelier.ports" . | fromJson -}}
{{- $control := .root.Values.control -}}
{{- $given := get .root.Values .service -}}
- name: {{ .service }}
  {{- include "atelier.containerBase" (dict "root" .root "image" "control") | nindent 2 }}
  args: [serve, {{ .service }}]
  env:
    {{- include "atelier.overlaid" (dict "own" (include "atelier.environment" .) "extras" (list $control.extraEnv $given.extraEnv)) | nindent 4 }}
  {{- with include "atelier.environmentFrom" (dict "root" .root "extra" $control.extraEnvFrom) }}
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
    timeoutSeconds: 3
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
  volumeMounts:
    - {name: data, mountPath: /data}
    - {name: tmp, mountPath: /tmp}
    - {name: tls, mountPath: /etc/atelier/tls, readOnly: true}
    {{- if .root.Values.tls.mutual.caSecret }}
    - {name: client-ca, mountPath: /etc/atelier/client-ca, readOnly: true}
    {{- end }}
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
    {{- with $control.extraVolumeMounts }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end -}}

{{/* What brings the ledger's tables to this version before any service of the pod starts. */}}
{{- define "atelier.migration" -}}
- name: migrate
  {{- include "atelier.containerBase" (dict "root" . "image" "control") | nindent 2 }}
  args: [migrate]
  env:
    {{- include "atelier.overlaid" (dict "own" (include "atelier.ledgerEnvironment" .) "extras" (list .Values.control.extraEnv)) | nindent 4 }}
  {{- with include "atelier.environmentFrom" (dict "root" . "extra" .Values.control.extraEnvFrom) }}
  {{- . | nindent 2 }}
  {{- end }}
  resources:
    requests: {cpu: 50m, memory: 128Mi}
    limits: {memory: 512Mi}
  volumeMounts:
    - {name: data, mountPath: /data}
    - {name: tmp, mountPath: /tmp}
    {{- with .Values.control.extraVolumeMounts }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
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
{{- with .root.Values.tls.mutual.caSecret }}
{{ include "atelier.secretVolume" (dict "name" "client-ca" "secret" . "items" (dict "ca.crt" "ca.crt")) }}
{{- end }}
{{ include "atelier.tokenVolume" .root }}
{{ include "atelier.secretVolume" (dict "name" "internal" "secret" (printf "%s-internal" $name)) }}
{{ include "atelier.mapVolume" (dict "name" "public" "map" (printf "%s-public" $name) "items" (dict "signing.pub" "signing.pub")) }}
{{ include "atelier.mapVolume" (dict "name" "pools" "map" (printf "%s-pools" $name) "items" (dict "pools.json" "pools.json")) }}
{{- if has "server" .services }}
{{ include "atelier.secretVolume" (dict "name" "ray" "secret" (printf "%s-ray" $name)) }}
{{- end }}
{{- if without .services "server" }}
{{ include "atelier.mapVolume" (dict "name" "workers" "map" (printf "%s-workers" $name)) }}
{{- end }}
{{- if without .services "server" "converter" }}
{{ include "atelier.secretVolume" (dict "name" "signing" "secret" (printf "%s-signing" $name)) }}
{{- end }}
{{- end -}}
