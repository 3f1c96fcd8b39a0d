# Two targets: `docker build --target cpu .` and `docker build --target gpu .` (the default).

# Declared before the first FROM: only then may a FROM use it.
ARG MERLIN_IMAGE=nvcr.io/nvidia/merlin/merlin-tensorflow:23.12

# --- cpu: Debian and what scripts/setup.sh makes.
FROM debian:12.11-slim AS cpu

# The versions of a stable Debian only ever get fixes; pinning them would break the build instead.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends ca-certificates g++ python3 python3-venv \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --create-home --uid 1000 lookback \
 && install --directory --owner 1000 --group 1000 /home/lookback/lookback

USER 1000
WORKDIR /home/lookback/lookback

# The environment first: it changes less often than the code.
COPY --chown=1000:1000 requirements/ requirements/
COPY --chown=1000:1000 __init__.py cli.py ./
COPY --chown=1000:1000 core/ core/
COPY --chown=1000:1000 kernels/ kernels/
COPY --chown=1000:1000 scripts/setup.sh scripts/check_environment.py scripts/
RUN scripts/setup.sh \
 && rm -rf .tools "$HOME/.cache"

COPY --chown=1000:1000 . .
ENV PATH=/home/lookback/lookback/.venv/bin:$PATH
CMD ["scripts/demo.sh", "--output", "/tmp/demo"]

# --- gpu: NVIDIA's image brings TensorFlow, Merlin, cudf, dask-cuda, SOK, NCCL and Horovod.
FROM ${MERLIN_IMAGE} AS gpu

# An image may already have a user 1000; it is as good as ours.
USER 0
RUN id -u 1000 > /dev/null 2>&1 || useradd --create-home --uid 1000 lookback \
 && install --directory --owner 1000 /opt/src/lookback
WORKDIR /opt/src/lookback

COPY requirements/gpu.txt requirements/gpu.txt
RUN python3 -m pip install --no-cache-dir --no-deps --require-hashes -r requirements/gpu.txt

# The checkout is the package, as scripts/setup.sh has it: Python finds it by a path file.
RUN echo /opt/src > "$(python3 -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/lookback.pth" \
 && printf '#!/bin/sh\nexec python3 /opt/src/lookback/cli.py "$@"\n' > /usr/local/bin/lookback \
 && chmod +x /usr/local/bin/lookback

COPY --chown=1000:1000 . .
USER 1000
CMD ["lookback", "train", "--help"]
