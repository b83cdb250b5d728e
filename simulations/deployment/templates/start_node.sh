#!/bin/sh
# Starts this node: by hand, by systemd (node.service) and in a container alike.
set -eu
here=$$(cd "$$(dirname "$$0")" && pwd)
test -n "$${NODE_CONFIG:-}" || { set -a; . "$$here/node.env"; set +a; }
STATE=$${STATE:-$$here/state}
mkdir -p "$$STATE"
cd "$$STATE"
export FLWR_HOME="$$STATE/flower" XDG_CACHE_HOME="$${XDG_CACHE_HOME:-$$STATE/cache}"
exec "$${PYTHON:-python3}" -m simulations.deployment.node \
    --superlink "$$SUPERLINK" --root-certificates "$$here/ca.crt" \
    --auth-supernode-private-key "$${CREDENTIALS_DIRECTORY:-$$here}/node.key" \
    --host 127.0.0.1 --port "$$NODE_PORT" --node-config "$$NODE_CONFIG"
