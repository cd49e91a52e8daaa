# Runs bundles, and builds engines, on a desktop or server with an NVIDIA GPU of the GeForce or professional kind. From
# the root of a checkout:
#
#   docker build -f docker/desktop.Dockerfile -t twins-trt .
#   docker run --rm --gpus all --user "$(id -u):$(id -g)" -v "$PWD:/data" \
#       twins-trt predict x.bundle photos --out masks
#
# EXTRAS chooses what is inside (docs/install.md): with cpu,cuda,tensorrt TensorRT itself instead of TensorRT-RTX, with
# build,rtx,cuda also torch and the tools that turn checkpoints into bundles.
ARG BASE=nvidia/cuda:13.0.0-base-ubuntu24.04

FROM ${BASE} AS build
ARG EXTRAS=cpu,cuda,rtx
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3-venv \
    && rm -rf /var/lib/apt/lists/*
COPY . /source
RUN python3 -m venv /venv \
    && /venv/bin/pip install --no-cache-dir --constraint /source/constraints.txt "/source[${EXTRAS}]"

FROM ${BASE}
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 10001 twins
COPY --from=build /venv /venv
ENV PATH=/venv/bin:${PATH}
USER 10001
WORKDIR /data
HEALTHCHECK --interval=5m --timeout=60s CMD ["twins-trt", "doctor", "--for", "predict"]
ENTRYPOINT ["twins-trt"]
CMD ["--help"]
