#!/usr/bin/env bash
# A virtual environment with the oldest dependencies that pyproject.toml declares.
# On Debian 12, numpy and h5py are Debian's own (h5py 3.7 on HDF5 1.10), which DIALS uses there;
# elsewhere the oldest wheel of h5py stands in.
set -euo pipefail
folder=$1
packages="numpy h5py numba xarray dask distributed hdf5plugin click tqdm matplotlib pytest pytest-xdist hypothesis pytest-benchmark"
constraints=tests/constraints-oldest.txt
rm -rf "$folder"
if command -v apt-get >/dev/null && [ "$(id -u)" = 0 ] && grep -q bookworm /etc/os-release; then
  debian="python3-venv python3-numpy python3-h5py"
  # shellcheck disable=SC2086
  if ! dpkg -s $debian >/dev/null 2>&1; then
    apt-get -qq update >/dev/null || true
    DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends $debian >/dev/null
  fi
  /usr/bin/python3.11 -m venv --system-site-packages "$folder"
  # Debian registers h5py under another name: tell pip that it is there.
  info=$folder/lib/python3.11/site-packages/h5py-3.7.0.dist-info
  mkdir -p "$info"
  printf 'Metadata-Version: 2.1\nName: h5py\nVersion: 3.7.0\n' >"$info/METADATA"
  echo debian >"$info/INSTALLER"
else
  echo "not Debian 12 as root: h5py 3.8 stands in for 3.7"
  python3.11 -m venv "$folder"
  constraints=$(mktemp)
  sed 's/^h5py==.*/h5py==3.8.0/' tests/constraints-oldest.txt >"$constraints"
fi
"$folder/bin/python" -m pip install --quiet --only-binary :all: -c "$constraints" $packages
"$folder/bin/python" -m pip install --quiet --no-deps --editable .
"$folder/bin/python" -c "import gaincal, h5py, numpy; print('oldest:', 'numpy', numpy.__version__, 'h5py', h5py.__version__, 'HDF5', h5py.version.hdf5_version)"
