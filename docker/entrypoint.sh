#!/bin/sh
# `docker run ... build|serve|detect|bench ...`: the codetr command; `serve` gets the image's defaults. It compares the
# repository with its manifest (SHA-256 of the engine, TensorRT's version) before the server starts.
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
# What follows `--` goes to tritonserver; further arguments of this script go to codetr serve.
exec codetr serve --repository /models --host 0.0.0.0 "$@" -- \
    "--http-restricted-api=${restricted}:codetr-admin=${CODETR_ADMIN_KEY}" \
    "--grpc-restricted-protocol=${restricted}:codetr-admin=${CODETR_ADMIN_KEY}"
