# The coordinator. The context is a folder of wheels, nothing else:
#     pip wheel --no-deps -w dist . && docker build -f deploy/docker/coordinator.Dockerfile -t headrace-coordinator dist
# A folder that holds all wheels, with `--build-arg PIP_OPTIONS=--no-index`, needs no network.
# Never hand a credential of a package index to the build: its arguments stand in the image's history.
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS build
ARG PIP_OPTIONS=""
COPY *.whl /wheels/
RUN python3 -m venv /opt/headrace \
    && /opt/headrace/bin/python -m pip install --no-cache-dir --no-compile --disable-pip-version-check ${PIP_OPTIONS} \
        --find-links /wheels "$(echo /wheels/headrace-*.whl)[cli,coordinator]" \
    && /opt/headrace/bin/python -m pip uninstall --yes --quiet pip setuptools

FROM ${BASE}
ARG VERSION=""
LABEL org.opencontainers.image.title="headrace-coordinator" \
      org.opencontainers.image.description="Headrace's coordinator: plans runs and hands jobs to agents" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}"
# The uid is fixed, so that volumes outlive images; the name is what PostgreSQL's initdb asks for.
RUN groupadd --system --gid 7433 headrace \
    && useradd --system --uid 7433 --gid headrace --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin headrace \
    && install -d -m 0700 -o headrace -g headrace /var/lib/headrace /var/lib/headrace/coordinator
COPY --from=build /opt/headrace /opt/headrace
# In a container all addresses are the container's own. The coordinator still refuses to speak without TLS there
# until the operator says HEADRACE_INSECURE=true, and wants to know HEADRACE_BLOB_PUBLIC_URL for a file:// store.
ENV PATH=/opt/headrace/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HEADRACE_DATA_DIR=/var/lib/headrace/coordinator \
    HEADRACE_LISTEN=0.0.0.0:7433 \
    HEADRACE_HTTP_LISTEN=0.0.0.0:7434 \
    HEADRACE_BLOB_LISTEN=0.0.0.0:7435
USER headrace
WORKDIR /
VOLUME /var/lib/headrace/coordinator
EXPOSE 7433 7434 7435
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s --retries=3 \
    CMD ["/opt/headrace/bin/python", "-I", "-S", "-c", "import http.client, os, sys; port = os.environ['HEADRACE_HTTP_LISTEN'].rpartition(':')[2]; c = http.client.HTTPConnection('127.0.0.1', int(port), timeout=4); c.request('GET', '/healthz'); sys.exit(c.getresponse().status != 200)"]
ENTRYPOINT ["/opt/headrace/bin/headrace"]
CMD ["coordinator"]
