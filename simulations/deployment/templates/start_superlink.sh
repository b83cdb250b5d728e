#!/bin/sh
# Starts the SuperLink: by hand, by systemd (superlink.service) and in a container alike.
# Its database and the run folders (runs/flower-RUN) are in STATE.
set -eu
here=$$(cd "$$(dirname "$$0")" && pwd)
test -n "$${PORT:-}" || { set -a; . "$$here/superlink.env"; set +a; }
STATE=$${STATE:-$$here/state}
mkdir -p "$$STATE"
cd "$$STATE"
export FLWR_HOME="$$STATE/flower"
exec "$${PYTHON:-python3}" -m simulations.deployment.link \
    --host "$$HOST" --port "$$PORT" --database "$$STATE/link.db" --enable-supernode-auth \
    --ssl-ca-certfile "$$here/ca.crt" --ssl-certfile "$$here/server.crt" \
    --ssl-keyfile "$${CREDENTIALS_DIRECTORY:-$$here}/server.key"
