{{/* What the schema cannot say. Each sentence tells what to do. */}}
{{- define "atelier.refusals" -}}
{{- if not (regexMatch "^[a-z][a-z0-9-]*$" (include "atelier.fullname" .)) -}}
{{- fail (printf "release: %s can be no Service's name, which has to begin with a letter and to have no dot: set fullnameOverride" (include "atelier.fullname" .)) -}}
{{- end -}}
{{- $names := list -}}
{{- $forJobs := list -}}
{{- range .Values.pools -}}
{{- if and .resourceClaims .resourceName -}}
{{- fail (printf "pools: %s has resourceClaims and resourceName: set one of them" .name) -}}
{{- end -}}
{{- if eq (int (dig "maxReplicas" 1 .)) 0 -}}{{- $forJobs = append $forJobs .name -}}{{- end -}}
{{- if gt (int (dig "minReplicas" 1 .)) (int (dig "maxReplicas" 1 .)) -}}
{{- fail (printf "pools: %s has minReplicas %v above maxReplicas %v" .name (dig "minReplicas" 1 .) (dig "maxReplicas" 1 .)) -}}
{{- end -}}
{{- $names = append $names .name -}}
{{- end -}}
{{- if ne (len $names) (len (uniq $names)) -}}
{{- fail (printf "pools: a name stands there twice: %s" (join ", " $names)) -}}
{{- end -}}
{{- $deployments := list -}}
{{- range .Values.deployments -}}
{{- if has .name $deployments -}}
{{- fail (printf "deployments: a name stands there twice: %s" .name) -}}
{{- end -}}
{{- $deployments = append $deployments .name -}}
{{- if has (.pool | default (first $names)) $forJobs -}}
{{- fail (printf "deployments: %s is for pool %s, which has maxReplicas 0 and takes jobs alone" .name (.pool | default (first $names))) -}}
{{- end -}}
{{- if and .pool (not (has .pool $names)) -}}
{{- fail (printf "deployments: %s is for pool %s; there are: %s" .name .pool (join ", " $names | default "none")) -}}
{{- end -}}
{{- if and (not .pool) (gt (len $names) 1) -}}
{{- fail (printf "deployments: say `pool` for %s, since there are several: %s" .name (join ", " $names)) -}}
{{- end -}}
{{- end -}}
{{- if and .Values.ledger.url .Values.ledger.existingSecret -}}
{{- fail "ledger: set url or existingSecret, not both" -}}
{{- end -}}
{{- if and .Values.tls.existingSecret .Values.tls.certManager.enabled -}}
{{- fail "tls: set existingSecret or certManager.enabled, not both" -}}
{{- end -}}
{{- if and (include "atelier.foreignTls" .) (not .Values.tls.certManager.enabled) .Values.tls.extraHosts -}}
{{- fail "tls: extraHosts are for a certificate that the release makes, and existingSecret has its own: leave one out" -}}
{{- end -}}
{{- if and .Values.tls.mutual.caSecret .Values.tls.existingSecret (not .Values.tls.mutual.clientSecret) -}}
{{- fail "tls.mutual: workers and replicas need a certificate to show: set clientSecret" -}}
{{- end -}}
{{- with .Values.server.autoscaling -}}
{{- if gt (int .minReplicas) (int .maxReplicas) -}}
{{- fail (printf "server.autoscaling: minReplicas %v is above maxReplicas %v" .minReplicas .maxReplicas) -}}
{{- end -}}
{{- end -}}
{{- $drain := .Values.control.drainSeconds -}}
{{- if lt (float64 .Values.control.terminationGracePeriodSeconds) (addf $drain 20) -}}
{{- fail (printf "control: terminationGracePeriodSeconds has to be at least 20 more than drainSeconds (%v)" $drain) -}}
{{- end -}}
{{- if and (ne .Values.service.type "LoadBalancer") (or .Values.service.loadBalancerClass .Values.service.loadBalancerSourceRanges) -}}
{{- fail "service: loadBalancerClass and loadBalancerSourceRanges need type LoadBalancer" -}}
{{- end -}}
{{- if and (eq .Values.service.type "ClusterIP") (or .Values.service.nodePort .Values.service.externalTrafficPolicy) -}}
{{- fail "service: nodePort and externalTrafficPolicy need type NodePort or LoadBalancer" -}}
{{- end -}}
{{- end -}}
