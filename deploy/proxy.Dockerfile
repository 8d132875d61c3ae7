# The image chandler-proxy: the agent with an Envoy, for gateways and sidecars whose
# proxy is envoy.
#
#   make build envoy
#   cp .tools/envoy/envoy bin/
#   buildah bud -f deploy/proxy.Dockerfile -t chandler-proxy .
#
# With a BASE that has curl and root certificates already no network is needed.
# Envoy wants glibc 2.30 or newer.
ARG BASE=docker.io/library/debian:bookworm-slim
FROM ${BASE}
ARG BINARY=bin/chandler
ARG ENVOY=bin/envoy
USER 0:0
RUN if ! command -v curl >/dev/null || ! test -s /etc/ssl/certs/ca-certificates.crt; then \
      apt-get update && \
      apt-get install -y --no-install-recommends ca-certificates curl && \
      rm -rf /var/lib/apt/lists/*; \
    fi
COPY --chmod=0555 ${ENVOY} /usr/local/bin/envoy
COPY --chmod=0555 ${BINARY} /usr/local/bin/chandler
USER 1337:1337
ENTRYPOINT ["/usr/local/bin/chandler"]
