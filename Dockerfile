# Two stages: python-iptables is compiled in the first, and the second has no compiler and no pip.
# Both are the same Debian: what is compiled against its Python and libc has to run with them.
#
# Built twice from the same base and the same Debian mirror it is the same image, bit for bit:
#   buildah build --timestamp 0 .     or     docker build with SOURCE_DATE_EPOCH=0
FROM debian:trixie-slim AS build
ARG DEBIAN_FRONTEND=noninteractive
RUN apt-get update \
 && apt-get install -y --no-install-recommends \
      binutils ca-certificates gcc libc6-dev python3-dev python3-pip python3-setuptools python3-wheel
WORKDIR /source
# Debian's pip installs into /usr/local, where nothing else is; --break-system-packages is about a
# system that is kept, and this stage is not.
ENV PIP_BREAK_SYSTEM_PACKAGES=1 PIP_ROOT_USER_ACTION=ignore PIP_NO_CACHE_DIR=1
# The versions that the tests run with. The last two are for manifests and the webhook.
COPY constraints.txt ./
RUN pip install --no-build-isolation --no-compile -c constraints.txt \
      click pyroute2 python-iptables PyYAML prometheus_client
COPY pyproject.toml LICENSE ./
COPY docs/pypi.md ./docs/pypi.md
COPY istio_iptables ./istio_iptables
RUN pip install --no-build-isolation --no-compile --no-deps . \
 # In place of pip's script, which imports re: without site, environment variables and the current
 # folder, 2 ms of 19 for a dry run.
 && packages=$(python3 -I -c 'import istio_iptables as it; print(it.__path__[0].rpartition("/")[0])') \
 && printf '%s\n' '#!/usr/bin/python3 -IS' 'import sys' "sys.path.append(\"$packages\")" \
      'from istio_iptables.__main__ import run' 'run()' >/usr/local/bin/istio-iptables \
 # Istio's pods start the image with the command pilot-agent.
 && ln -s istio-iptables /usr/local/bin/pilot-agent \
 # Remove what differs between builds: paths and times in compiled code, and the records of them.
 && find /usr/local -name '*.so' -exec strip --strip-unneeded --remove-section=.note.gnu.build-id {} + \
 && find /usr/local '(' -name direct_url.json -o -name RECORD ')' -delete \
 && python3 -m compileall -q -f --invalidation-mode unchecked-hash /usr/local/lib

FROM debian:trixie-slim
LABEL org.opencontainers.image.title="istio-iptables" \
      org.opencontainers.image.description="Istio's iptables rules: print, install, compare and explain them" \
      org.opencontainers.image.licenses="Apache-2.0"
ARG DEBIAN_FRONTEND=noninteractive
RUN apt-get update \
 && apt-get install -y --no-install-recommends iptables nftables python3 \
 # Debian's bytecode is for the times of its files, which a reproducible build sets to 0: each start
 # compiled Python's own library anew, 25 to 55 ms.
 && python3 -m compileall -q -f --invalidation-mode unchecked-hash /usr/lib/python3* \
 # Package lists, and files that record when they were installed.
 && rm -rf /var/lib/apt/lists/* /var/cache/* /var/log/* /etc/*- /var/lib/dpkg/*-old
COPY --from=build /usr/local /usr/local
ENTRYPOINT ["istio-iptables"]
