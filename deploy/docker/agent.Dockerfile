# The agent. The context is a folder of wheels, nothing else:
#     pip wheel --no-deps -w dist . && docker build -f deploy/docker/agent.Dockerfile -t headrace-agent dist
# A folder that holds all wheels, with `--build-arg PIP_OPTIONS=--no-index`, and a base that has the packages below,
# needs no network. Never hand a credential of a package index to the build: its arguments stand in the history.
#
# What the container needs to hold jobs is not in the image but in how it is started: docs/operations/install.md.
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS build
ARG PIP_OPTIONS=""
COPY *.whl /wheels/
RUN python3 -m venv /opt/headrace \
    && /opt/headrace/bin/python -m pip install --no-cache-dir --no-compile --disable-pip-version-check ${PIP_OPTIONS} \
        --find-links /wheels "$(echo /wheels/headrace-*.whl)[cli,agent]" \
    && /opt/headrace/bin/python -m pip uninstall --yes --quiet pip setuptools

FROM ${BASE}
ARG VERSION=""
LABEL org.opencontainers.image.title="headrace-agent" \
      org.opencontainers.image.description="Headrace's agent: runs jobs in sandboxes" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}"
# git makes workspaces; ip and iptables build the jobs' networks; the static busybox is the control shell that a job
# cannot read; setpriv and mount come with the base.
RUN set -e; missing=""; \
    for each in git:git ip:iproute2 iptables:iptables setpriv:util-linux mount:mount; do \
        command -v "${each%%:*}" >/dev/null || missing="$missing ${each#*:}"; \
    done; \
    [ -x /bin/busybox ] || missing="$missing busybox-static"; \
    if [ -n "$missing" ]; then \
        apt-get update; DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends ca-certificates $missing; \
        rm -rf /var/lib/apt/lists/*; \
    fi; \
    install -d -m 0700 /var/lib/headrace /var/lib/headrace/agent
COPY --from=build /opt/headrace /opt/headrace
# /metrics stays inside unless the operator opens it: HEADRACE_METRICS_LISTEN=0.0.0.0:7436.
ENV PATH=/opt/headrace/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HEADRACE_DATA_DIR=/var/lib/headrace/agent \
    HEADRACE_METRICS_LISTEN=127.0.0.1:7436
WORKDIR /
VOLUME /var/lib/headrace/agent
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s --retries=3 \
    CMD ["/opt/headrace/bin/python", "-I", "-S", "-c", "import http.client, os, sys; port = os.environ['HEADRACE_METRICS_LISTEN'].rpartition(':')[2]; c = http.client.HTTPConnection('127.0.0.1', int(port), timeout=4); c.request('GET', '/healthz'); sys.exit(c.getresponse().status != 200)"]
ENTRYPOINT ["/opt/headrace/bin/headrace"]
CMD ["agent"]
