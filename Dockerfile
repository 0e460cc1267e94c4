# Two stages: python-iptables is compiled in the first, and the second has no compiler and no pip.
# Both are the same Debian, so that what was compiled against its Python and libc fits.

FROM debian:trixie-slim AS build
RUN apt-get update \
 && apt-get install -y --no-install-recommends gcc libc6-dev python3-dev python3-pip \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY istio_iptables ./istio_iptables
# Debian's pip puts this into /usr/local, where nothing else is; bytecode is made on the way. The
# warning that --break-system-packages silences is about a system that is kept: this one is not.
RUN pip install --no-cache-dir --break-system-packages --root-user-action=ignore .

FROM debian:trixie-slim
LABEL org.opencontainers.image.title="istio-iptables" \
      org.opencontainers.image.description="Istio's iptables rules: print, install, compare and explain them" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN apt-get update \
 && apt-get install -y --no-install-recommends iptables python3 \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt /var/log/apt /var/log/dpkg.log
COPY --from=build /usr/local /usr/local
ENTRYPOINT ["istio-iptables"]
