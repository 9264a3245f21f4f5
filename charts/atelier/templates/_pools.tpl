{{/* CPUs that a raylet is started with: the CPU limit rounded down, at least 1; 1 where there is no limit. */}}
{{- define "atelier.wholeCpus" -}}
{{- $cpu := dig "limits" "cpu" "1" . | toString -}}
{{- if hasSuffix "m" $cpu -}}
{{- max 1 (div (trimSuffix "m" $cpu | int64) 1000) -}}
{{- else -}}
{{- max 1 (float64 $cpu | floor | int64) -}}
{{- end -}}
{{- end -}}

{{/* Every pool with what its values leave out, as a JSON list. */}}
{{- define "atelier.wholePools" -}}
{{- $name := include "atelier.fullname" . -}}
{{- $pools := list -}}
{{- range .Values.pools -}}
{{- $gpu := .gpu | default "" -}}
{{- $resource := .resourceName | default "nvidia.com/gpu" -}}
{{- $gpus := .gpusPerReplica | default 1 -}}
{{- $resources := deepCopy (.resources | default $.Values.ray.nodes.resources) -}}
{{- $tolerations := .tolerations | default list -}}
{{- if and $gpu (not .resourceClaims) -}}
{{- $_ := set $resources "limits" (mergeOverwrite (dict) ($resources.limits | default dict) (dict $resource $gpus)) -}}
{{- end -}}
{{- if $gpu -}}
{{- $tolerations = .tolerations | default (list (dict "key" $resource "operator" "Exists" "effect" "NoSchedule")) -}}
{{- end -}}
{{- $minimum := dig "minReplicas" 1 . -}}
{{- $maximum := dig "maxReplicas" 1 . -}}
{{- $pool := dict
  "name" .name
  "gpu" $gpu
  "minReplicas" $minimum
  "maxReplicas" $maximum
  "resourceName" $resource
  "gpusPerReplica" $gpus
  "numCpus" (include "atelier.wholeCpus" $resources | int64)
  "nodeSelector" (.nodeSelector | default dict)
  "resources" $resources
  "tolerations" $tolerations
  "targetOngoingRequests" (dig "targetOngoingRequests" 8 .)
  "upscaleDelaySeconds" (dig "upscaleDelaySeconds" 10 .)
  "downscaleDelaySeconds" (dig "downscaleDelaySeconds" 300 .)
  "downscaleToZeroDelaySeconds" (dig "downscaleToZeroDelaySeconds" 300 .)
  "whenFull" (.whenFull | default "wait")
  "serveEager" (dig "serveEager" true .)
  "resourceClaims" (.resourceClaims | default list)
  "deployment" (ternary (printf "%s-pool-%s" $name .name) "" (and (eq $.Values.ray.operator "none") (gt (int64 $maximum) 0)))
-}}
{{- $pools = append $pools $pool -}}
{{- end -}}
{{- toJson $pools -}}
{{- end -}}

{{/* pools.json, as the services read it. */}}
{{- define "atelier.pools" -}}
{{- include "atelier.wholePools" . | fromJsonArray | toPrettyJson -}}
{{- end -}}

{{/* What a replica is told: (dict "root" $ "pool" {...}). No secret stands in it. */}}
{{- define "atelier.replica" -}}
{{- dict
  "pool" .pool.name
  "gpu" (.pool.gpu | default "cpu")
  "internal_target" (printf "%s-server:7888" (include "atelier.fullname" .root))
  "internal_token_file" "/etc/atelier/internal/token"
  "public_key" "/etc/atelier/public/signing.pub"
  "cache" "/cache"
  "log" ""
  "store_url" .root.Values.store.url
  "threads" (int64 .pool.numCpus)
  "tls" (include "atelier.callerTls" .root | fromJson)
| toPrettyJson -}}
{{- end -}}
