#!/bin/sh
# `docker run ... build|serve|detect|bench ...`: the codetr command; `serve` gets the image's defaults. What comes
# before `--` are options of codetr serve, what comes behind it options of tritonserver. Which endpoints want the key,
# CODETR_ADMIN_KEY or a random one, codetr serve decides.
set -eu

if [ "${1:-serve}" != serve ]; then
    exec codetr "$@"
fi
[ $# -eq 0 ] || shift
exec codetr serve --repository /models --host 0.0.0.0 "$@"
