# Runs bundles on a Jetson with JetPack 7.0 or 7.1 (L4T 38, TensorRT 10.13). On the Jetson, from the
# root of a checkout:
#
#   docker build -f docker/jetpack7.Dockerfile -t twins-trt .
#   docker run --rm --runtime nvidia --group-add video --group-add "$(getent group render | cut -d: -f3)" \
#       --user "$(id -u):$(id -g)" -v "$PWD:/data" \
#       twins-trt predict x.bundle photos --out masks
#
# TensorRT and its Python bindings are the base image's own, so the environment sees that image's packages; pip never
# brings tensorrt.
ARG BASE=nvcr.io/nvidia/tensorrt:25.09-py3

FROM ${BASE} AS build
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3-venv \
    && rm -rf /var/lib/apt/lists/*
COPY . /source
RUN python3 -m venv --system-site-packages /venv \
    && /venv/bin/pip install --no-cache-dir --requirement /source/requirements/jetson.txt \
    && /venv/bin/pip install --no-cache-dir --no-deps /source \
    && /venv/bin/python -c "import tensorrt; assert tensorrt.__version__.startswith('10.13.'), tensorrt.__version__"

FROM ${BASE}
# A Jetson's GPU is open to two groups: video, which has the same number everywhere, and render, whose number differs.
RUN useradd --create-home --uid 10001 --groups video twins
COPY --from=build /venv /venv
ENV PATH=/venv/bin:${PATH}
USER 10001
WORKDIR /data
HEALTHCHECK --interval=5m --timeout=60s CMD ["twins-trt", "doctor", "--for", "predict"]
ENTRYPOINT ["twins-trt"]
CMD ["--help"]
