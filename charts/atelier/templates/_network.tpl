{{/* Anywhere but the addresses that hand out a machine's credentials (and Ethernet's own, but for DNS on the node). */}}
{{- define "atelier.anywhere" -}}
- namespaceSelector: {}
- ipBlock: {cidr: 0.0.0.0/0, except: [169.254.169.254/32, 169.254.170.2/32, 169.254.170.23/32]}
- ipBlock: {cidr: "::/0", except: ["fd00:ec2::254/128", "fd00:ec2::23/128", "fd20:ce::254/128"]}
{{- end -}}

{{/* Pods of a component: (dict "root" $ "component" "worker"). */}}
{{- define "atelier.peer" -}}
- podSelector:
    matchLabels:
      {{- include "atelier.selector" . | nindent 6 }}
{{- end -}}

{{/* Ports as a policy names them: (list 7878 9000). */}}
{{- define "atelier.policyPorts" -}}
ports:
  {{- range . }}
  - {port: {{ . }}, protocol: TCP}
  {{- end }}
{{- end -}}

{{/* Ports on which Ray's pods speak among themselves. */}}
{{- define "atelier.rayInside" -}}
{{- $ports := include "atelier.rayPorts" . | fromJson -}}
ports:
  {{- range $key := list "gcs" "nodeManager" "objectManager" "runtimeEnv" "agent" "agentGrpc" }}
  - {port: {{ get $ports $key }}, protocol: TCP}
  {{- end }}
  - {port: {{ $ports.firstWorker }}, endPort: {{ $ports.lastWorker }}, protocol: TCP}
{{- end -}}

{{/* Rule for names. */}}
{{- define "atelier.toDns" -}}
- to:
    {{- if .Values.networkPolicy.dns.to }}
    {{- toYaml .Values.networkPolicy.dns.to | nindent 4 }}
    {{- else }}
    {{- include "atelier.anywhere" . | nindent 4 }}
    {{- end }}
  ports:
    {{- range .Values.networkPolicy.dns.ports }}
    - {port: {{ . }}, protocol: UDP}
    - {port: {{ . }}, protocol: TCP}
    {{- end }}
{{- end -}}

{{/* Rule for the API server; for pods with a Role alone. */}}
{{- define "atelier.toApiServer" -}}
- to:
    {{- if .Values.networkPolicy.apiServer.cidrs }}
    {{- range .Values.networkPolicy.apiServer.cidrs }}
    - ipBlock: {cidr: {{ . | quote }}}
    {{- end }}
    {{- else }}
    {{- include "atelier.anywhere" . | nindent 4 }}
    {{- end }}
  {{- include "atelier.policyPorts" .Values.networkPolicy.apiServer.ports | nindent 2 }}
{{- end -}}

{{/* Rule for Postgres or the store: (dict "root" $ "place" .Values.networkPolicy.ledger). */}}
{{- define "atelier.toPlace" -}}
- to:
    {{- if .place.to }}
    {{- toYaml .place.to | nindent 4 }}
    {{- else }}
    {{- include "atelier.anywhere" .root | nindent 4 }}
    {{- end }}
  {{- include "atelier.policyPorts" .place.ports | nindent 2 }}
{{- end -}}

{{/* Rule for the collector of traces, where there is one. */}}
{{- define "atelier.toCollector" -}}
{{- if .Values.tracing.endpoint -}}
{{- include "atelier.toPlace" (dict "root" . "place" .Values.networkPolicy.tracing) -}}
{{- end -}}
{{- end -}}

{{/* Who may read metrics, as peers; nothing where nobody does. */}}
{{- define "atelier.metricsPeers" -}}
{{- if .Values.networkPolicy.metrics -}}
{{- toYaml .Values.networkPolicy.metrics -}}
{{- else if or .Values.metrics.serviceMonitor.enabled .Values.metrics.podMonitor.enabled -}}
- namespaceSelector: {}
{{- end -}}
{{- end -}}
