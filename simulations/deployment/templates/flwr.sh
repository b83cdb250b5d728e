#!/bin/sh
# Flower's command line, talking to this fleet's SuperLink: sh flwr.sh list fleet
# It has a home of its own, so that the settings of other fleets stay as they are.
set -eu
here=$$(cd "$$(dirname "$$0")" && pwd)
export FLWR_HOME="$${FLEET_HOME:-$$HOME/.fedsparse-fleet}"
export FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1
mkdir -p "$$FLWR_HOME"
sed "s|^root-certificates.*|root-certificates = \"$$here/ca.crt\"|" "$$here/connection.toml" \
    > "$$FLWR_HOME/config.toml"
exec "$${FLWR:-flwr}" "$$@"
