{{- define "atelier.credentialsContainer" -}}
- name: credentials
  {{- include "atelier.containerBase" (dict "root" . "image" "control") | nindent 2 }}
  command: [python, -m, atelier.kubernetes.credentials]
  args:
    - --name={{ include "atelier.fullname" . }}
    - --instance={{ .Release.Name }}
    {{- if include "atelier.foreignTls" . }}
    - --no-tls
    - --public-ca-from-secret={{ include "atelier.tlsSecret" . }}
    {{- else }}
    {{- range include "atelier.hosts" . | fromJsonArray }}
    - --host={{ . }}
    {{- end }}
    {{- end }}
    {{- if .Values.auth.existingSecret }}
    - --no-token
    {{- end }}
    {{- if .Values.ray.tls }}
    - --ray-ca
    {{- end }}
  resources:
    requests: {cpu: 50m, memory: 64Mi}
    limits: {memory: 256Mi}
  volumeMounts:
    - {name: tmp, mountPath: /tmp}
{{- end -}}

{{/* A container with the command line, which runs a script: (dict "root" $ "name" "deploy" "script" "..." "arguments" list). */}}
{{- define "atelier.clientContainer" -}}
- name: {{ .name }}
  {{- include "atelier.containerBase" (dict "root" .root "image" "control") | nindent 2 }}
  command: [sh, -euc]
  args:
    - |
      {{- .script | nindent 6 }}
    - {{ .name }}
    {{- range .arguments }}
    - {{ . | quote }}
    {{- end }}
  env:
    {{- include "atelier.clientEnvironment" .root | nindent 4 }}
  resources:
    requests: {cpu: 50m, memory: 64Mi}
    limits: {memory: 256Mi}
  volumeMounts:
    - {name: tmp, mountPath: /tmp}
    - {name: token, mountPath: /etc/atelier/token, readOnly: true}
    {{- include "atelier.callerMounts" .root | nindent 4 }}
{{- end -}}

{{- define "atelier.clientVolumes" -}}
- name: tmp
  emptyDir: {}
{{ include "atelier.tokenVolume" . }}
{{ include "atelier.callerVolumes" . }}
{{- end -}}
