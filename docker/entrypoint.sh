#!/bin/sh
# `docker run ... build|serve|detect|bench ...`: the codetr command; `serve` gets the image's defaults. What comes
# before `--` are options of codetr serve, what comes behind it options of tritonserver.
set -eu

if [ "${1:-serve}" != serve ]; then
    exec codetr "$@"
fi
[ $# -eq 0 ] || shift

# Endpoints that change the server or tell of its inside want this key in the header `codetr-admin`. Not model-config:
# clients read the class names there.
if [ -z "${CODETR_ADMIN_KEY:-}" ]; then
    CODETR_ADMIN_KEY=$(od -An -N24 -tx1 /dev/urandom | tr -d ' \n')  # nobody knows it: the endpoints are shut
fi
restricted="model-repository,shared-memory,statistics,trace,logging"
# Options behind the first `--` go to tritonserver: these, and the caller's where there are any.
separator=--
for word in "$@"; do
    [ "$word" != -- ] || separator=
done
exec codetr serve --repository /models --host 0.0.0.0 "$@" ${separator:+"$separator"} \
    "--http-restricted-api=${restricted}:codetr-admin=${CODETR_ADMIN_KEY}" \
    "--grpc-restricted-protocol=${restricted}:codetr-admin=${CODETR_ADMIN_KEY}"
