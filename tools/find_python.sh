#!/usr/bin/env bash
# Prints the Python to build with: $PYTHON, else python3.11, else python3 where that is 3.11. With `--quiet`, says nothing
# when there is none.
set -uo pipefail

usable() { "$1" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }
is_311() { "$1" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' >/dev/null 2>&1; }

if [ -n "${PYTHON:-}" ]; then
  if usable "$PYTHON"; then command -v "$PYTHON" && exit 0; fi
  [ "${1:-}" = --quiet ] || echo "PYTHON is '$PYTHON'; expected a Python from 3.11 on with the modules venv and ensurepip" >&2
  exit 1
fi
for candidate in python3.11 python3; do
  if is_311 "$candidate" && usable "$candidate"; then command -v "$candidate" && exit 0; fi
done
[ "${1:-}" = --quiet ] || echo "found no Python 3.11 with venv; install python3.11 and python3.11-venv, or set PYTHON" >&2
exit 1
