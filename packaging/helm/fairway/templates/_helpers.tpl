{{- define "fairway.name" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- /* What chooses the Pods; it never changes while a release lives. */ -}}
{{- define "fairway.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "fairway.labels" -}}
{{ include "fairway.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "fairway.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- .Values.serviceAccount.name | default (include "fairway.name" .) -}}
{{- else -}}
{{- .Values.serviceAccount.name | default "default" -}}
{{- end -}}
{{- end -}}

{{- define "fairway.image" -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" .Values.image.repository (.Values.image.tag | default .Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{- /* Where the document has status and metrics, as the program has it when the document is silent. */ -}}
{{- define "fairway.metrics" -}}
{{- ((.Values.config.admin).metrics) | default "127.0.0.1:9180" -}}
{{- end -}}

{{- define "fairway.metricsPort" -}}
{{- include "fairway.metrics" . | regexFind "[0-9]+$" -}}
{{- end -}}

{{- /* Whom the kubelet asks: the network is the node's. */ -}}
{{- define "fairway.metricsHost" -}}
{{- $host := regexReplaceAll ":[0-9]+$" (include "fairway.metrics" .) "" | trimPrefix "[" | trimSuffix "]" -}}
{{- if or (eq $host "0.0.0.0") (eq $host "::") -}}127.0.0.1{{- else -}}{{- $host -}}{{- end -}}
{{- end -}}

{{- /* Fails when nobody but the node would reach the metrics. */ -}}
{{- define "fairway.metricsForOthers" -}}
{{- if regexMatch "^(127\\.|\\[::1\\]|localhost)" (include "fairway.metrics" .) -}}
{{- fail (printf "metrics: nobody but the node reaches %s; set config.admin.metrics to 0.0.0.0:9180" (include "fairway.metrics" .)) -}}
{{- end -}}
{{- end -}}
