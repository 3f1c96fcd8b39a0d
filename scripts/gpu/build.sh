#!/usr/bin/env bash
# Makes an environment for GPUs on Debian 12, without the Merlin image and without a GPU: TensorFlow
# 2.12.1, Horovod with NCCL and Gloo, SOK 2.1.0, for CUDA 11.8.
#
# usage: scripts/gpu/build.sh [DIR]        (default: .gpu in this checkout)
#
# Needed: apt-get install nvidia-cuda-toolkit g++-11 libopenmpi-dev make (non-free), Python 3.11.
# GPU_SM=90 (the default) chooses the architecture. 12 minutes of two cores.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd -P)
environment=${1:-$root/.gpu}
architecture=${GPU_SM:-90}
jobs=$(nproc)

die() { printf 'gpu/build: error: %s\n' "$*" >&2; exit 1; }
for tool in nvcc g++-11 python3.11 make; do
  command -v "$tool" > /dev/null ||
    die "$tool is missing. Debian: apt-get install nvidia-cuda-toolkit g++-11 libopenmpi-dev make" \
      "python3.11-venv (with the component non-free)."
done
[[ ! -e $environment ]] || die "$environment exists: remove it, or name another directory"

wheels=$(mktemp -d)
trap 'rm -rf "$wheels"' EXIT
python3.11 -m venv "$environment"
pip=("$environment/bin/python" -m pip --disable-pip-version-check --quiet)
"${pip[@]}" install "tensorflow==2.12.1" "numpy==1.24.3" "protobuf<5" "setuptools<70" wheel \
  scikit-build "cmake<4" ninja packaging cloudpickle psutil pyyaml cffi
"${pip[@]}" install --no-deps nvidia-cudnn-cu11==8.6.0.163 nvidia-nccl-cu11==2.16.5 \
  nvidia-cublas-cu11==11.11.3.6 nvidia-cuda-runtime-cu11==11.8.89 nvidia-cufft-cu11==10.9.0.58 \
  nvidia-curand-cu11==10.3.0.86 nvidia-cusolver-cu11==11.4.1.48 nvidia-cusparse-cu11==11.7.5.86 \
  nvidia-cuda-nvcc-cu11==11.8.89
nvidia=$environment/lib/python3.11/site-packages/nvidia
ln -sf libnccl.so.2 "$nvidia/nccl/lib/libnccl.so" # the wheel has no name to link with

export PATH=$environment/bin:/usr/bin:/bin # Debian's nvcc before one in /usr/local/cuda
export CC=gcc-11 CXX=g++-11 CUDACXX=/usr/bin/nvcc CUDAHOSTCXX=g++-11 TF_CPP_MIN_LOG_LEVEL=2
export NCCL_DIR=$nvidia/nccl MAKEFLAGS=-j$jobs CMAKE_BUILD_PARALLEL_LEVEL=$jobs
source_wheel() { # PACKAGE==VERSION
  "${pip[@]}" wheel --no-build-isolation --no-deps --no-binary :all: -w "$wheels" "$1"
}
HOROVOD_WITH_TENSORFLOW=1 HOROVOD_WITHOUT_PYTORCH=1 HOROVOD_WITHOUT_MXNET=1 \
  HOROVOD_WITHOUT_MPI=1 HOROVOD_WITH_GLOO=1 HOROVOD_GPU_OPERATIONS=NCCL \
  HOROVOD_NCCL_HOME=$NCCL_DIR HOROVOD_NCCL_LINK=SHARED HOROVOD_CUDA_HOME=/usr \
  HOROVOD_BUILD_CUDA_CC_LIST=$architecture source_wheel horovod==0.28.1
"${pip[@]}" install --no-deps "$wheels"/horovod-*.whl
CXXFLAGS="-isystem $nvidia/cudnn/include" CUDAFLAGS="-isystem $nvidia/cudnn/include" \
  LDFLAGS=-Wl,--as-needed SOK_COMPILE_GPU_SM=$architecture source_wheel merlin-sok==2.1.0
"${pip[@]}" install --no-deps "$wheels"/merlin_sok-*.whl

# Of what Lookback runs on, all but the TensorFlow for CPUs and what is there already.
locked=$(mktemp)
trap 'rm -rf "$wheels" "$locked"' EXIT
sed -n 's/^\([A-Za-z0-9._-]*==[^ ;\\]*\).*/\1/p' "$root/requirements/runtime.txt" |
  grep -v '^tensorflow-cpu==' > "$locked"
"${pip[@]}" install --no-deps -r "$locked"
libraries=$(printf '%s:' "$nvidia"/*/lib)
LD_LIBRARY_PATH=$libraries python -c 'import sparse_operation_kit as sok; print("SOK", sok.__version__)'
echo "ready: LD_LIBRARY_PATH=$libraries"
