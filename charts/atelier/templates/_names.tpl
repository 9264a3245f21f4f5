{{/* Base of all names; at most 40 characters, so that what is appended fits into a DNS label. */}}
{{- define "atelier.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Labels by which Services, Deployments and policies find the pods of a component; they never change. (dict "root" $ "component" "server") */}}
{{- define "atelier.selector" -}}
app.kubernetes.io/name: {{ default .root.Chart.Name .root.Values.nameOverride }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{/* Labels of an object of a component. */}}
{{- define "atelier.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{ include "atelier.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: atelier
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Metadata of an object: (dict "root" $ "component" "server" "name" "atelier-server" "annotations" dict). */}}
{{- define "atelier.metadata" -}}
name: {{ .name }}
namespace: {{ .root.Release.Namespace }}
labels:
  {{- include "atelier.labels" . | nindent 2 }}
{{- with merge (dict) (.annotations | default dict) .root.Values.commonAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Labels of the pods of a component. No version stands there: Ray's pods would restart with every release. */}}
{{- define "atelier.podLabels" -}}
{{ include "atelier.selector" . }}
app.kubernetes.io/part-of: atelier
{{- with merge (dict) (.labels | default dict) .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Reference of an image: (dict "root" $ "image" "control"). */}}
{{- define "atelier.image" -}}
{{- $image := get .root.Values.images .image -}}
{{- $registry := $image.registry | default .root.Values.global.imageRegistry -}}
{{- $name := ternary (printf "%s/%s" $registry $image.repository) $image.repository (ne $registry "") -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $name $image.digest -}}
{{- else -}}
{{- printf "%s:%s" $name ($image.tag | default .root.Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{/* "true" with ledger and store of its own, where each service has a Deployment; empty where one pod has all four. */}}
{{- define "atelier.scaled" -}}
{{- if or .Values.ledger.url .Values.ledger.existingSecret -}}true{{- end -}}
{{- end -}}

{{/* Names of Secrets and of the ConfigMap that the hook makes, or that were there. */}}
{{- define "atelier.tlsSecret" -}}
{{- .Values.tls.existingSecret | default (printf "%s-tls" (include "atelier.fullname" .)) -}}
{{- end -}}

{{- define "atelier.tokenSecret" -}}
{{- .Values.auth.existingSecret | default (printf "%s-token" (include "atelier.fullname" .)) -}}
{{- end -}}
