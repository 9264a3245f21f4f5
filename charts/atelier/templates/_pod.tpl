{{/* A pod's spec, the same for all: (dict "root" $ "given" .Values.control "component" "control" "account" "atelier-control" "token" true
     "graceSeconds" 60 "restartPolicy" "" "spread" false "initContainers" "..." "containers" "..." "volumes" "..."). `given` is what
     values say of the component. */}}
{{- define "atelier.pod" -}}
{{- $root := .root -}}
{{- $given := .given -}}
serviceAccountName: {{ .account }}
automountServiceAccountToken: {{ .token | default false }}
# Else each Service would set variables like ATELIER_SERVE_PORT.
enableServiceLinks: false
{{- with .restartPolicy }}
restartPolicy: {{ . }}
{{- end }}
terminationGracePeriodSeconds: {{ .graceSeconds }}
securityContext:
  {{- ternary (omit $root.Values.podSecurityContext "runAsUser" "runAsGroup" "fsGroup") $root.Values.podSecurityContext $root.Values.openshift | toYaml | nindent 2 }}
{{- with $root.Values.global.imagePullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- range $key := list "nodeSelector" "tolerations" "affinity" "resourceClaims" }}
{{- with get $given $key }}
{{ $key }}:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
{{- range $key := list "priorityClassName" "runtimeClassName" }}
{{- with get $given $key }}
{{ $key }}: {{ . }}
{{- end }}
{{- end }}
{{- with $given.topologySpreadConstraints }}
topologySpreadConstraints:
  {{- toYaml . | nindent 2 }}
{{- else }}
{{- with .spread }}
topologySpreadConstraints:
  {{- range $key := list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
  - maxSkew: 1
    topologyKey: {{ $key }}
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- $.spread | nindent 8 }}
  {{- end }}
{{- end }}
{{- end }}
{{- if or .initContainers $given.extraInitContainers }}
initContainers:
  {{- with .initContainers }}
  {{- . | nindent 2 }}
  {{- end }}
  {{- with $given.extraInitContainers }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}
containers:
  {{- .containers | nindent 2 }}
  {{- with $given.extraContainers }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
volumes:
  {{- .volumes | nindent 2 }}
  {{- with $given.extraVolumes }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}

{{/* Annotations of a pod: (dict "own" dict "given" .Values.control); nothing where there are none. */}}
{{- define "atelier.podAnnotations" -}}
{{- with merge (dict) (.given.podAnnotations | default dict) .own -}}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end -}}
{{- end -}}

{{/* Image and security of a container: (dict "root" $ "image" "control"). */}}
{{- define "atelier.containerBase" -}}
image: {{ include "atelier.image" . }}
imagePullPolicy: {{ .root.Values.images.pullPolicy }}
securityContext:
  {{- toYaml .root.Values.containerSecurityContext | nindent 2 }}
{{- end -}}

{{/* Environment with no name twice; of two the later counts: (dict "own" "yaml" "extras" (list list list)). */}}
{{- define "atelier.overlaid" -}}
{{- $found := dict -}}
{{- $order := list -}}
{{- range prepend .extras (fromYamlArray .own) -}}
{{- range . -}}
{{- if not (hasKey $found .name) -}}{{- $order = append $order .name -}}{{- end -}}
{{- $_ := set $found .name . -}}
{{- end -}}
{{- end -}}
{{- $list := list -}}
{{- range $order -}}{{- $list = append $list (get $found .) -}}{{- end -}}
{{- toYaml $list -}}
{{- end -}}

{{/* Environment from Secrets and ConfigMaps: the store's credentials, and what values add; nothing where there is none. */}}
{{- define "atelier.environmentFrom" -}}
{{- $from := list -}}
{{- with .root.Values.store.existingSecret -}}{{- $from = append $from (dict "secretRef" (dict "name" .)) -}}{{- end -}}
{{- with concat $from (.extra | default list) -}}
envFrom:
  {{- toYaml . | nindent 2 }}
{{- end -}}
{{- end -}}

{{/* A volume of a Secret that the pod's group may read: (dict "name" "token" "secret" "atelier-token" "items" (dict "key" "path")). */}}
{{- define "atelier.secretVolume" -}}
- name: {{ .name }}
  secret:
    secretName: {{ .secret }}
    defaultMode: 0440
    {{- with .items }}
    items:
      {{- range $key, $path := . }}
      - {key: {{ $key }}, path: {{ $path }}}
      {{- end }}
    {{- end }}
{{- end -}}

{{/* A volume of a ConfigMap: (dict "name" "public" "map" "atelier-public" "items" (dict "key" "path")). */}}
{{- define "atelier.mapVolume" -}}
- name: {{ .name }}
  configMap:
    name: {{ .map }}
    {{- with .items }}
    items:
      {{- range $key, $path := . }}
      - {key: {{ $key }}, path: {{ $path }}}
      {{- end }}
    {{- end }}
{{- end -}}
