#!/bin/sh
# Makes the nodes' public keys known, on the SuperLink's machine. May be repeated.
set -eu
here=$$(cd "$$(dirname "$$0")" && pwd)
failed=0
for key in "$$here"/keys/*.pub; do
    name=$$(basename "$$key" .pub)
    if said=$$(sh "$$here/flwr.sh" supernode register "$$key" fleet --name "$$name" 2>&1); then
        echo "$$name: registered"
    else
        case "$$said" in
            *"already in use"*) echo "$$name: known already" ;;
            *) echo "$$name: refused: $$said" >&2; failed=1 ;;
        esac
    fi
done
exit $$failed
