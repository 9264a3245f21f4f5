{{/* The Job of a worker, which its service fills in: name, job, token and, for training and compilation, the pool's nodes and devices.
     (dict "root" $ "service" "trainer") */}}
{{- define "atelier.worker" -}}
{{- $root := .root -}}
{{- $name := include "atelier.fullname" $root -}}
{{- $ports := include "atelier.ports" . | fromJson -}}
{{- $workers := $root.Values.workers -}}
apiVersion: batch/v1
kind: Job
metadata:
  namespace: {{ $root.Release.Namespace }}
  labels:
    {{- include "atelier.podLabels" (dict "root" $root "component" "worker") | nindent 4 }}
    atelier.dev/service: {{ .service }}
    {{- with $workers.kueueQueue }}
    kueue.x-k8s.io/queue-name: {{ . }}
    {{- end }}
spec:
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
        {{- include "atelier.podLabels" (dict "root" $root "component" "worker") | nindent 8 }}
        atelier.dev/service: {{ .service }}
    spec:
      restartPolicy: Never
      serviceAccountName: {{ $name }}-worker
      automountServiceAccountToken: false
      enableServiceLinks: false
      terminationGracePeriodSeconds: {{ $workers.terminationGracePeriodSeconds }}
      securityContext:
        {{- include "atelier.podSecurity" $root | nindent 8 }}
      {{- with include "atelier.placement" (dict "root" $root "given" dict) }}
      {{- . | nindent 6 }}
      {{- end }}
      containers:
        - name: worker
          image: {{ include "atelier.image" (dict "root" $root "image" .service) }}
          imagePullPolicy: {{ $root.Values.images.pullPolicy }}
          command: [python, -m, atelier.{{ .service }}]
          env:
            - name: ATELIER_ATTEMPTS
              value: {{ $name }}-{{ .service }}:{{ $ports.internal }}
            - name: ATELIER_PUBLIC_KEY
              value: /etc/atelier/public/signing.pub
            - name: ATELIER_TLS_CA
              value: /etc/atelier/ca/ca.crt
            - name: ATELIER_WORKER_DIR
              value: /tmp/work
            - name: HF_HUB_OFFLINE
              value: "1"
            - name: TOKENIZERS_PARALLELISM
              value: "false"
          {{- with include "atelier.environmentFrom" (dict "root" $root) }}
          {{- . | nindent 10 }}
          {{- end }}
          resources:
            {{- toYaml (get $workers .service).resources | nindent 12 }}
          securityContext:
            {{- include "atelier.containerSecurity" $root | nindent 12 }}
          volumeMounts:
            - {name: tmp, mountPath: /tmp}
            - {name: shm, mountPath: /dev/shm}
            - {name: ca, mountPath: /etc/atelier/ca, readOnly: true}
            - {name: public, mountPath: /etc/atelier/public, readOnly: true}
      volumes:
        - name: tmp
          emptyDir: {}
        - name: shm
          emptyDir: {medium: Memory, sizeLimit: 1Gi}
        {{- include "atelier.authorityVolume" $root | nindent 8 }}
        - name: public
          configMap:
            name: {{ $name }}-public
            items:
              - {key: signing.pub, path: signing.pub}
{{- end -}}

{{/* The data of the ConfigMap: a whole manifest a service. */}}
{{- define "atelier.workers" -}}
{{- range $service := list "trainer" "converter" "compiler" }}
{{ $service }}.json: |
  {{- include "atelier.worker" (dict "root" $ "service" $service) | fromYaml | toPrettyJson | nindent 2 }}
{{- end }}
{{- end -}}
