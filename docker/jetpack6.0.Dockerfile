# Runs bundles on a Jetson with JetPack 6.0 (L4T 36.2 and 36.3, TensorRT 8.6). On the Jetson, from the
# root of a checkout:
#
#   docker build -f docker/jetpack6.0.Dockerfile -t twins-trt .
#   docker run --rm --runtime nvidia --group-add video --group-add "$(getent group render | cut -d: -f3)" \
#       --user "$(id -u):$(id -g)" -v "$PWD:/data" \
#       twins-trt predict x.bundle photos --out masks
#
# TensorRT and its Python bindings are the base image's own, so the environment sees that image's packages; pip never
# brings tensorrt.
ARG BASE=nvcr.io/nvidia/l4t-tensorrt:r8.6.2-runtime

FROM ${BASE} AS build
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3-venv \
    && rm -rf /var/lib/apt/lists/*
COPY . /source
RUN python3 -m venv --system-site-packages /venv \
    && /venv/bin/pip install --no-cache-dir --requirement /source/requirements/jetson.txt \
    && /venv/bin/pip install --no-cache-dir --no-deps /source \
    && /venv/bin/python -c "import tensorrt; assert tensorrt.__version__.startswith('8.6.'), tensorrt.__version__"

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
