#!/bin/sh
# get-servers.sh [FOLDER]: fetches the servers of the tests into FOLDER, by default where the tests look for them.
cd "$(dirname "$0")/.." && exec packages/testing/scripts/get-servers.sh "${1:-.cache/servers}"
