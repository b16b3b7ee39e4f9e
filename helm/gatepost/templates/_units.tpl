{{/* Times, sizes and ports, out of how people write them. */}}

{{/* `200ms`, `15m`: in milliseconds. */}}
{{- define "gatepost.milliseconds" -}}
{{- $units := dict "ms" 1 "s" 1000 "m" 60000 "h" 3600000 -}}
{{- mul (regexFind "^[0-9]+" (toString .) | int64) (get $units (regexFind "[a-z]+$" (toString .)) | int64) -}}
{{- end -}}

{{/* `256KiB` of the settings, `6Gi` of Kubernetes, or a number: in bytes. */}}
{{- define "gatepost.bytes" -}}
{{- if kindIs "string" . -}}
{{- $units := dict "" 1 "B" 1 "k" 1000 "M" 1000000 "G" 1000000000 "T" 1000000000000 -}}
{{- range $power, $letter := list "K" "M" "G" "T" "P" -}}
{{- $bytes := 1024 -}}
{{- range until $power }}{{ $bytes = mul $bytes 1024 }}{{ end -}}
{{- $_ := set $units (printf "%si" $letter) $bytes -}}
{{- $_ := set $units (printf "%siB" $letter) $bytes -}}
{{- end -}}
{{- mulf (regexFind "^[0-9.]+" . | float64) (get $units (regexFind "[A-Za-z]*$" .) | float64) | printf "%.0f" -}}
{{- else -}}
{{- printf "%.0f" (float64 .) -}}
{{- end -}}
{{- end -}}

{{/* The port that a URL, or a `host:port`, leads to. */}}
{{- define "gatepost.port" -}}
{{- $scheme := regexFind "^[a-z]+://" . | trimSuffix "://" -}}
{{- $authority := regexReplaceAll "^([a-z]+://)?([^/?#]*).*$" . "${2}" -}}
{{- $port := regexFind ":[0-9]+$" $authority | trimPrefix ":" -}}
{{- if and (not $scheme) (regexMatch "^[^/]*@[^/]*:" .) -}}
{{- /* git@host:path */ -}}
22
{{- else -}}
{{- $port | default (get (dict "http" "80" "redis" "6379" "rediss" "6379" "ssh" "22") $scheme | default "443") -}}
{{- end -}}
{{- end -}}

{{/* The ports of everything that the pods call, as a JSON list: what `config` and the repository of the policies name. */}}
{{- define "gatepost.ports" -}}
{{- $urls := list -}}
{{- $ports := list -}}
{{- range .Values.config.issuers -}}
{{- $urls = concat $urls (compact (list .jwks_url .discovery_url (.introspection | default dict).url)) -}}
{{- $urls = concat $urls (.jwks_hosts | default list) -}}
{{- if kindIs "slice" .status_lists }}{{ $urls = concat $urls .status_lists }}{{ end -}}
{{- end -}}
{{- range (.Values.config.audit | default dict).sinks -}}
{{- with .syslog -}}
{{- $plain := and (hasKey . "tls") (not .tls) -}}
{{- $ports = append $ports (.port | default (ternary 601 6514 $plain)) -}}
{{- end -}}
{{- $urls = concat $urls (compact (list (.splunk | default dict).url (.elastic | default dict).url (.otlp | default dict).endpoint)) -}}
{{- $urls = concat $urls ((.kafka | default dict).brokers | default list) -}}
{{- end -}}
{{- $telemetry := (.Values.config.telemetry | default dict).otlp | default dict -}}
{{- $redis := (.Values.config.revocation | default dict).redis | default dict -}}
{{- $urls = concat $urls (compact (list $telemetry.endpoint $redis.url .Values.policies.gitSync.repository)) -}}
{{- range $urls }}{{ $ports = append $ports (include "gatepost.port" .) }}{{ end -}}
{{- $numbers := list -}}
{{- range $ports }}{{ $numbers = append $numbers (int .) }}{{ end -}}
{{- $numbers | uniq | toJson -}}
{{- end -}}
