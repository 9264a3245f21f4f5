{{/* Environment of a worker; its service adds job and token. */}}
{{- define "atelier.workerEnvironment" -}}
{{- $ports := include "atelier.ports" . | fromJson -}}
- name: ATELIER_ATTEMPTS
  value: {{ include "atelier.fullname" .root }}-{{ .service }}:{{ $ports.internal }}
- name: ATELIER_PUBLIC_KEY
  value: /etc/atelier/public/signing.pub
{{- range $variable, $path := include "atelier.callerTls" .root | fromJson }}
- name: {{ $variable }}
  value: {{ $path }}
{{- end }}
- name: ATELIER_WORKER_DIR
  value: /tmp/work
- name: ATELIER_LOG_JSON
  value: "true"
# Threads of PyTorch, which would take all cores of the node: the CPU limit, or what the node has.
- name: OMP_NUM_THREADS
  valueFrom:
    resourceFieldRef: {containerName: worker, resource: limits.cpu, divisor: "1"}
- name: HF_HUB_OFFLINE
  value: "1"
- name: TOKENIZERS_PARALLELISM
  value: "false"
{{- end -}}

{{- define "atelier.workerContainer" -}}
{{- $workers := .root.Values.workers -}}
- name: worker
  {{- include "atelier.containerBase" (dict "root" .root "image" .service) | nindent 2 }}
  command: [python, -m, atelier.{{ .service }}]
  env:
    {{- include "atelier.overlaid" (dict "own" (include "atelier.workerEnvironment" .) "extras" (list $workers.extraEnv)) | nindent 4 }}
  {{- with include "atelier.environmentFrom" (dict "root" .root "extra" $workers.extraEnvFrom) }}
  {{- . | nindent 2 }}
  {{- end }}
  resources:
    {{- toYaml (get $workers .service).resources | nindent 4 }}
  volumeMounts:
    - {name: tmp, mountPath: /tmp}
    - {name: shm, mountPath: /dev/shm}
    - {name: public, mountPath: /etc/atelier/public, readOnly: true}
    {{- include "atelier.callerMounts" .root | nindent 4 }}
    {{- with $workers.extraVolumeMounts }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end -}}

{{- define "atelier.workerVolumes" -}}
- name: tmp
  emptyDir: {sizeLimit: {{ .Values.workers.scratchSize }}}
- name: shm
  emptyDir: {medium: Memory, sizeLimit: 1Gi}
{{ include "atelier.mapVolume" (dict "name" "public" "map" (printf "%s-public" (include "atelier.fullname" .)) "items" (dict "signing.pub" "signing.pub")) }}
{{ include "atelier.callerVolumes" . }}
{{- end -}}

{{/* The Job of a worker, which its service fills in: name, job, token and, for training and compilation, the pool's nodes and devices.
     (dict "root" $ "service" "trainer") */}}
{{- define "atelier.worker" -}}
{{- $root := .root -}}
{{- $workers := $root.Values.workers -}}
{{- $labels := merge (dict "atelier.dev/service" .service) $workers.podLabels -}}
apiVersion: batch/v1
kind: Job
metadata:
  namespace: {{ $root.Release.Namespace }}
  labels:
    {{- include "atelier.podLabels" (dict "root" $root "component" "worker" "labels" (dict "atelier.dev/service" .service)) | nindent 4 }}
    {{- with $workers.kueueQueue }}
    kueue.x-k8s.io/queue-name: {{ . }}
    {{- end }}
  # With this object the Jobs of a release go; its uid is filled in.
  ownerReferences:
    - {apiVersion: v1, kind: ConfigMap, name: {{ include "atelier.fullname" $root }}-workers, uid: ""}
spec:
  # Attempts are counted in the ledger; a pod that the cluster takes away is none, and is made anew once it has ended.
  backoffLimit: 0
  podReplacementPolicy: Failed
  podFailurePolicy:
    rules:
      - action: Ignore
        onPodConditions:
          - {type: DisruptionTarget, status: "True"}
  ttlSecondsAfterFinished: {{ $workers.ttlSecondsAfterFinished }}
  template:
    metadata:
      labels:
        {{- include "atelier.podLabels" (dict "root" $root "component" "worker" "labels" $labels) | nindent 8 }}
      {{- with $workers.podAnnotations }}
      annotations:
        {{- toYaml . | nindent 8 }}
      {{- end }}
    spec:
      {{- include "atelier.pod" (dict
        "root" $root "given" $workers "component" "worker" "account" (printf "%s-worker" (include "atelier.fullname" $root))
        "restartPolicy" "Never" "graceSeconds" $workers.terminationGracePeriodSeconds
        "containers" (include "atelier.workerContainer" .)
        "volumes" (include "atelier.workerVolumes" $root)
      ) | nindent 6 }}
{{- end -}}

{{/* A whole manifest a service, as the data of a ConfigMap. */}}
{{- define "atelier.workers" -}}
{{- range $service := list "trainer" "converter" "compiler" }}
{{ $service }}.json: |
  {{- include "atelier.worker" (dict "root" $ "service" $service) | fromYaml | toPrettyJson | nindent 2 }}
{{- end }}
{{- end -}}
