{{/* Who trusts whom: Secrets of certificates and tokens, and what workers, replicas and hooks mount of them. */}}

{{/* "true" where the certificate is somebody else's. */}}
{{- define "atelier.foreignTls" -}}
{{- if or .Values.tls.existingSecret .Values.tls.certManager.enabled -}}true{{- end -}}
{{- end -}}

{{- define "atelier.tlsSecret" -}}
{{- .Values.tls.existingSecret | default (printf "%s-tls" (include "atelier.fullname" .)) -}}
{{- end -}}

{{- define "atelier.clientSecret" -}}
{{- .Values.tls.mutual.clientSecret | default (printf "%s-client-tls" (include "atelier.fullname" .)) -}}
{{- end -}}

{{/* Names that the serving certificate is good for, as a JSON list. */}}
{{- define "atelier.hosts" -}}
{{- $name := include "atelier.fullname" . -}}
{{- $hosts := list "localhost" -}}
{{- range list $name (printf "%s-server" $name) (printf "%s-trainer" $name) (printf "%s-converter" $name) (printf "%s-compiler" $name) -}}
{{- $inside := printf "%s.%s" . $.Release.Namespace -}}
{{- $hosts = concat $hosts (list . $inside (printf "%s.svc" $inside) (printf "%s.svc.%s" $inside $.Values.clusterDomain)) -}}
{{- end -}}
{{- if and .Values.ingress.enabled .Values.ingress.host -}}{{- $hosts = append $hosts .Values.ingress.host -}}{{- end -}}
{{- if .Values.grpcRoute.enabled -}}{{- $hosts = concat $hosts .Values.grpcRoute.hostnames -}}{{- end -}}
{{- concat $hosts .Values.tls.extraHosts | uniq | toJson -}}
{{- end -}}

{{/* Volumes of whoever calls a service: the authority alone, and with mTLS what is shown. */}}
{{- define "atelier.callerVolumes" -}}
{{- if include "atelier.foreignTls" . -}}
{{ include "atelier.secretVolume" (dict "name" "ca" "secret" (include "atelier.tlsSecret" .) "items" (dict "ca.crt" "ca.crt")) }}
{{- else -}}
{{ include "atelier.mapVolume" (dict "name" "ca" "map" (printf "%s-public" (include "atelier.fullname" .)) "items" (dict "ca.crt" "ca.crt")) }}
{{- end }}
{{- if .Values.tls.mutual.caSecret }}
{{ include "atelier.secretVolume" (dict "name" "client" "secret" (include "atelier.clientSecret" .) "items" (dict "tls.crt" "tls.crt" "tls.key" "tls.key")) }}
{{- end }}
{{- end -}}

{{- define "atelier.callerMounts" -}}
- {name: ca, mountPath: /etc/atelier/ca, readOnly: true}
{{- if .Values.tls.mutual.caSecret }}
- {name: client, mountPath: /etc/atelier/client, readOnly: true}
{{- end }}
{{- end -}}

{{/* The same as a JSON object of variables. */}}
{{- define "atelier.callerTls" -}}
{{- $tls := dict "ATELIER_TLS_CA" "/etc/atelier/ca/ca.crt" -}}
{{- if .Values.tls.mutual.caSecret -}}
{{- $tls = merge $tls (dict "ATELIER_TLS_CERT" "/etc/atelier/client/tls.crt" "ATELIER_TLS_KEY" "/etc/atelier/client/tls.key") -}}
{{- end -}}
{{- toJson $tls -}}
{{- end -}}

{{/* Volume with the clients' tokens, in a file `token`. */}}
{{- define "atelier.tokenVolume" -}}
{{- $secret := .Values.auth.existingSecret | default (printf "%s-token" (include "atelier.fullname" .)) -}}
{{- $key := ternary .Values.auth.existingSecretKey "token" (ne .Values.auth.existingSecret "") -}}
{{- include "atelier.secretVolume" (dict "name" "token" "secret" $secret "items" (dict $key "token")) -}}
{{- end -}}

{{/* Environment of the command line in a hook or test. */}}
{{- define "atelier.clientEnvironment" -}}
- name: ATELIER_SERVER
  value: https://{{ include "atelier.fullname" . }}:{{ .Values.service.port }}
- name: ATELIER_TOKEN_FILE
  value: /etc/atelier/token/token
- name: ATELIER_CA_FILE
  value: /etc/atelier/ca/ca.crt
{{- if .Values.tls.mutual.caSecret }}
- name: ATELIER_CERT_FILE
  value: /etc/atelier/client/tls.crt
- name: ATELIER_KEY_FILE
  value: /etc/atelier/client/tls.key
{{- end }}
{{- end -}}
