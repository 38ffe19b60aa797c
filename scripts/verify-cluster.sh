#!/usr/bin/env bash
# Check manifests against a real cluster, and the service in it:
#   scripts/verify-cluster.sh [OVERLAY] [--apply]
# OVERLAY is a folder with a kustomization (default: k8s/overlays/dev). Without --apply nothing is changed: the server
# checks every object (schemas, admission, pod security) in a dry run. With --apply the objects are applied, and when all
# pods are ready a document is stored, found and deleted through the gateway.
# Environment: KUBECTL (default: kubectl), NAMESPACE (clipflow), TIMEOUT (600s), CLIPFLOW_API_KEY (a key that may write).
set -euo pipefail
kubectl=${KUBECTL:-kubectl}
namespace=${NAMESPACE:-clipflow}
timeout=${TIMEOUT:-600s}
overlay=$(dirname "${BASH_SOURCE[0]}")/../k8s/overlays/dev
apply=
for given in "$@"; do
  case $given in
    --apply) apply=yes ;;
    -*) echo "usage: scripts/verify-cluster.sh [OVERLAY] [--apply]" >&2; exit 2 ;;
    *) overlay=$given ;;
  esac
done
[ -f "$overlay/kustomization.yaml" ] || { echo "$overlay holds no kustomization.yaml" >&2; exit 2; }
work=$(mktemp -d)
forward=
tidy() {
  [ -z "$forward" ] || kill "$forward" 2>/dev/null || true
  rm -rf "$work"
}
trap tidy EXIT
say() { echo "== $*"; }

say "cluster"
"$kubectl" version
say "building $overlay"
"$kubectl" kustomize "$overlay" >"$work/all.yaml"
if ! "$kubectl" get namespace "$namespace" >/dev/null 2>&1; then
  # In a dry run the namespace is not made, and the server refuses everything inside of it.
  if [ -z "$apply" ]; then
    echo "there is no namespace $namespace; make it first: $kubectl create namespace $namespace" >&2
    exit 1
  fi
  "$kubectl" create namespace "$namespace"
fi
say "dry run by the server"
"$kubectl" label namespace "$namespace" --overwrite --dry-run=server pod-security.kubernetes.io/enforce=restricted
"$kubectl" apply --server-side --dry-run=server -f "$work/all.yaml"
[ -n "$apply" ] || { say "the cluster would take it; nothing was changed"; exit 0; }

say "applying"
"$kubectl" apply --server-side -f "$work/all.yaml"
say "waiting until all pods are ready (at most $timeout each)"
for workload in $("$kubectl" get deployments,statefulsets -n "$namespace" -l app.kubernetes.io/name=clipflow -o name); do
  "$kubectl" rollout status -n "$namespace" --timeout "$timeout" "$workload"
done
say "calling the service"
port=${PORT:-18080}
"$kubectl" port-forward -n "$namespace" service/gateway "$port:http" >"$work/forward.log" 2>&1 &
forward=$!
url=http://127.0.0.1:$port
call() {
  local key=()
  [ -z "${CLIPFLOW_API_KEY:-}" ] || key=(-H "Authorization: Bearer $CLIPFLOW_API_KEY")
  curl -q --noproxy '*' --silent --show-error --fail-with-body --max-time 60 "${key[@]}" "$@"
}
for _ in $(seq 50); do
  call "$url/readyz" >/dev/null 2>&1 && break
  kill -0 "$forward" 2>/dev/null || { cat "$work/forward.log" >&2; exit 1; }
  sleep 0.2
done
call "$url/readyz" && echo
id=verify-cluster-$$-$RANDOM
call -X POST "$url/v1/documents" -H 'Content-Type: application/json' \
  -d "{\"documents\": [{\"id\": \"$id\", \"text\": \"a red apple on a wooden table\"}]}" >/dev/null
found=$(call -X POST "$url/v1/search" -H 'Content-Type: application/json' \
  -d '{"text": "a red apple on a wooden table", "limit": 10}') || found="the search failed: $found"
call -X DELETE "$url/v1/documents/$id" >/dev/null
case $found in
  *"$id"*) say "a document was stored, found and deleted: the service works" ;;
  *) echo "the document that was stored was not found: $found" >&2; exit 1 ;;
esac
