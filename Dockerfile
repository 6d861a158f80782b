# Residuum in a container. ENGINE=cpu (default) is small and runs anywhere; ENGINE=gpu brings CUDA's libraries as
# wheels and needs only NVIDIA's driver and container toolkit on the machine. Neither has torch.
#
#   docker build -t residuum:cpu .
#   docker build -t residuum:gpu --build-arg ENGINE=gpu .
#
# Written for BuildKit and for the older builder alike, hence no cache mounts and no heredocs.
ARG PYTHON_IMAGE=python:3.12-slim-bookworm

# What changes rarely: a virtual environment with what serving needs, and without pip.
FROM ${PYTHON_IMAGE} AS dependencies
ARG ENGINE=cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
RUN python -m venv /opt/build && python -m venv --without-pip /opt/residuum
WORKDIR /src
COPY pyproject.toml constraints.txt constraints-gpu.txt ./
# The base dependencies name onnxruntime-gpu on Linux, as it serves both kinds of machine; where no GPU is meant
# to be used, onnxruntime is the same package at a fifth of the size.
RUN set -eu; \
    listed() { /opt/build/bin/python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))$1, sep='\n')"; }; \
    base="['project']['dependencies']"; extra="['project']['optional-dependencies']"; \
    case "$ENGINE" in \
      cpu) { listed "$base" | sed -e '/^onnxruntime-gpu/d' -e 's/^\(onnxruntime[^;]*\);.*/\1/'; \
             listed "$extra['openvino']"; } >requirements.txt ;; \
      gpu) { listed "$base"; listed "$extra['gpu']"; } >requirements.txt ;; \
      *) echo "ENGINE=$ENGINE: choose cpu or gpu" >&2; exit 1 ;; \
    esac; \
    /opt/build/bin/pip --python /opt/residuum/bin/python install \
      --constraint constraints.txt --constraint constraints-gpu.txt --requirement requirements.txt

# What changes often: our own code and the embedded model, as a layer of its own.
FROM dependencies AS build
RUN /opt/build/bin/pip install --constraint constraints.txt hatchling
COPY LICENSE NOTICE README.md ./
COPY residuum ./residuum
COPY artifact ./artifact
COPY engines ./engines
COPY introspection ./introspection
COPY export ./export
COPY models ./models
COPY service ./service
RUN /opt/build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /tmp/wheels . \
    && /opt/build/bin/pip --python /opt/residuum/bin/python install --no-deps --prefix /opt/app /tmp/wheels/*.whl

FROM ${PYTHON_IMAGE}
RUN useradd --uid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin residuum \
    && install --directory --owner 10001 --group 10001 /cache
COPY --from=dependencies /opt/residuum /opt/residuum
COPY --from=build /opt/app /opt/residuum
ENV PATH=/opt/residuum/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    RESIDUUM_HOST=0.0.0.0 \
    RESIDUUM_PORT=8000 \
    RESIDUUM_ARTIFACTS=/artifacts \
    # Which engine was the fastest here, and TensorRT's plans; a volume keeps them from one start to the next.
    RESIDUUM_ENGINE_CACHE=/cache \
    # ONNX Runtime reports to its makers unless told not to, and where it cannot, waits 10 s for that when it ends.
    ORT_DISABLE_TELEMETRY=1 \
    # What NVIDIA's container toolkit mounts, and where CUDA may write; without meaning on a CPU.
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    CUDA_CACHE_PATH=/tmp/cuda
WORKDIR /tmp
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM
# http.client, because it takes no notice of proxy settings.
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 CMD ["python", "-ISc", "\
import http.client, os, sys; \
health = http.client.HTTPConnection('127.0.0.1', int(os.environ.get('RESIDUUM_PORT') or 8000), timeout=4); \
health.request('GET', '/health/ready'); \
sys.exit(health.getresponse().status != 200)"]
ENTRYPOINT ["residuum"]
CMD ["serve"]
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Residuum" \
      org.opencontainers.image.description="Serves pretrained ResNets over HTTP and shows what every residual block adds" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
