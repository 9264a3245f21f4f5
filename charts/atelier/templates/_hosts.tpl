{{/* Names that the serving certificate is good for, as a JSON list. */}}
{{- define "atelier.hosts" -}}
{{- $name := include "atelier.fullname" . -}}
{{- $hosts := list "localhost" -}}
{{- range list $name (printf "%s-server" $name) (printf "%s-trainer" $name) (printf "%s-converter" $name) (printf "%s-compiler" $name) -}}
{{- $inside := printf "%s.%s" . $.Release.Namespace -}}
{{- $hosts = concat $hosts (list . $inside (printf "%s.svc" $inside) (printf "%s.svc.%s" $inside $.Values.clusterDomain)) -}}
{{- end -}}
{{- concat $hosts .Values.tls.extraHosts | uniq | toJson -}}
{{- end -}}
