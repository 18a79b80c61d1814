# syntax=docker/dockerfile:1
# The firewall on CPUs, with the shipped int8 model. Build in the repository's root:
#   docker build -t semantic-firewall .
# docs/images.md says how to run it.

ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/venv && python -m venv /opt/build
COPY requirements/build.lock requirements/serve.lock /src/requirements/
RUN /opt/build/bin/pip install --require-hashes --only-binary :all: -r /src/requirements/build.lock \
    && /opt/venv/bin/pip install --require-hashes --only-binary :all: -r /src/requirements/serve.lock
COPY pyproject.toml README.md LICENSE NOTICE /src/
COPY service /src/service
COPY models /src/models
# The wheel carries service/ and models/; the packages it needs are there already, exactly as locked.
RUN /opt/build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /wheel /src \
    && /opt/venv/bin/pip install --no-deps /wheel/*.whl \
    && /opt/venv/bin/pip uninstall --yes pip setuptools

FROM ${PYTHON_IMAGE}
RUN groupadd --system --gid 10001 firewall \
    && useradd --system --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin firewall \
    && install -d -o 10001 -g 10001 -m 0700 /var/lib/firewall
COPY --from=build /opt/venv /opt/venv
COPY docker/firewall.toml /etc/firewall/firewall.toml
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    ORT_DISABLE_TELEMETRY=1 \
    FIREWALL_CONFIG=/etc/firewall/firewall.toml
USER 10001:10001
WORKDIR /var/lib/firewall
VOLUME ["/var/lib/firewall"]
EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=3s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8080/health/live', timeout=2)"]
ENTRYPOINT ["semantic-firewall"]
CMD ["serve"]
