#!/usr/bin/env bash
# Installs the Debian packages that a task needs, where they are missing: `system_packages.sh build` or `... lint`.
# Uses sudo when it isn't root. On a system without apt-get it only says what to look for.
set -euo pipefail
cd "$(dirname "$0")"

task=${1:-build}
# Programs count by being there, however they were installed; libraries by their package.
case $task in
  build)
    programs="g++:g++ cmake:cmake ninja:ninja-build ccache:ccache pkg-config:pkg-config"
    libraries="libsimdjson-dev nlohmann-json3-dev libcli11-dev doctest-dev libpcre2-dev libicu-dev"
    ;;
  lint)
    programs="clang-format:clang-format clang-tidy:clang-tidy"
    libraries=""
    ;;
  *)
    echo "system_packages.sh: task '$task'; expected build or lint" >&2
    exit 2
    ;;
esac

if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
  echo "no apt-get here: make sure that these are installed (Debian's names): $(echo "$programs" | sed "s|[^ ]*:||g") $libraries"
  exit 0
fi

missing=()
for pair in $programs; do
  command -v "${pair%%:*}" >/dev/null || missing+=("${pair##*:}")
done
installed() { [ "$(dpkg-query -W -f='${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }
for library in $libraries; do
  installed "$library" || missing+=("$library")
done
if [ "$task" = build ]; then
  python=$(./find_python.sh --quiet || true)
  headers='import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))'
  if [ -z "$python" ] && [ -z "${PYTHON:-}" ]; then
    missing+=(python3.11 python3.11-venv python3.11-dev)
  elif [ -n "$python" ] && ! "$python" -c "$headers"; then
    missing+=("$("$python" -c 'import sys; print("python%d.%d-dev" % sys.version_info[:2])')")
  fi
fi
[ ${#missing[@]} -gt 0 ] || exit 0

as_root=()
if [ "$(id -u)" -ne 0 ]; then
  if ! command -v sudo >/dev/null; then
    echo "missing system packages; as root, run: apt-get install ${missing[*]}" >&2
    exit 1
  fi
  as_root=(sudo)
fi
echo "installing system packages: ${as_root[*]:+sudo }apt-get install ${missing[*]}"
"${as_root[@]}" apt-get update -qq -o Acquire::Retries=3 || echo "apt-get update failed; going on with the present lists" >&2
if ! "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends \
  -o Acquire::Retries=3 "${missing[@]}" >/dev/null; then
  echo "apt-get could not install all of: ${missing[*]}" >&2
  echo "where there is no python3.11, give another Python from 3.11 on: make PYTHON=..." >&2
  exit 1
fi
[ "$task" != build ] || ./find_python.sh >/dev/null
