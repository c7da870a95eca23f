#!/usr/bin/env bash
# Installs what the tests of pages need beyond the Python environment: Debian's Chromium, and a font. Does nothing when it is there.
set -euo pipefail

if command -v chromium >/dev/null; then exit 0; fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core
command -v chromium >/dev/null
