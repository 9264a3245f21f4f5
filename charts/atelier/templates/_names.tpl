{{/* Beginning of all names; at most 40 characters, so that what is appended fits into a DNS label. */}}
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

{{/* Labels by which all pods of the release are found. */}}
{{- define "atelier.release" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{/* Labels by which Services, Deployments and policies find the pods of a component; they never change.
     (dict "root" $ "component" "server") */}}
{{- define "atelier.selector" -}}
{{ include "atelier.release" .root }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{/* Metadata of an object: (dict "root" $ "component" "server" "name" "atelier-server" "labels" dict "annotations" dict). */}}
{{- define "atelier.metadata" -}}
name: {{ .name }}
namespace: {{ .root.Release.Namespace }}
labels:
  helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
  {{- include "atelier.selector" . | nindent 2 }}
  app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
  app.kubernetes.io/part-of: atelier
  app.kubernetes.io/managed-by: {{ .root.Release.Service }}
  {{- with merge (dict) (.labels | default dict) .root.Values.commonLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with merge (dict) (.annotations | default dict) .root.Values.commonAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Labels of the pods of a component. No version stands there: with it Ray's pods would restart with every release. */}}
{{- define "atelier.podLabels" -}}
{{- include "atelier.selector" . }}
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

{{/* "true" with a ledger and a store, where each service has a Deployment; empty where one pod has all four. */}}
{{- define "atelier.scaled" -}}
{{- if or .Values.ledger.url .Values.ledger.existingSecret -}}true{{- end -}}
{{- end -}}

{{/* The component whose pods run a service: (dict "root" $ "service" "server"). */}}
{{- define "atelier.componentOf" -}}
{{- ternary .service "control" (eq (include "atelier.scaled" .root) "true") -}}
{{- end -}}

{{/* Components with pods of the services, as a JSON list. */}}
{{- define "atelier.components" -}}
{{- ternary (list "server" "trainer" "converter" "compiler") (list "control") (eq (include "atelier.scaled" .) "true") | toJson -}}
{{- end -}}

{{/* Ports of a service by name: what clients call, what workers and replicas call, health and metrics in the clear. (dict "service" "server") */}}
{{- define "atelier.ports" -}}
{{- $offset := get (dict "server" 0 "trainer" 1 "converter" 2 "compiler" 3) .service -}}
{{- dict "public" (add 7878 $offset) "internal" (add 7888 $offset) "health" (add 7868 $offset) "metrics" (add 7858 $offset) | toJson -}}
{{- end -}}
