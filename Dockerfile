# Two stages: python-iptables is compiled in the first, and the second has no compiler and no pip.
# Both are the same Debian, so that what was compiled against its Python and libc fits.
#
# Building it twice gives the same image, given the same base and Debian mirror:
#   buildah build --timestamp 0 .     or     docker build with SOURCE_DATE_EPOCH=0
FROM debian:trixie-slim AS build
ARG DEBIAN_FRONTEND=noninteractive
RUN apt-get update \
 && apt-get install -y --no-install-recommends \
      binutils ca-certificates gcc libc6-dev python3-dev python3-pip python3-setuptools python3-wheel
WORKDIR /source
# The versions that the tests ran with. Debian's pip puts them into /usr/local, where nothing else
# is; the warning that --break-system-packages silences is about a system that is kept.
ENV PIP_BREAK_SYSTEM_PACKAGES=1 PIP_ROOT_USER_ACTION=ignore PIP_NO_CACHE_DIR=1
RUN pip install --no-build-isolation --no-compile click==8.5.1 pyroute2==0.9.7 python-iptables==1.2.0
COPY pyproject.toml README.md LICENSE ./
COPY istio_iptables ./istio_iptables
RUN pip install --no-build-isolation --no-compile --no-deps . \
 # Istio's own pods start this image as pilot-agent is started.
 && ln -s istio-iptables /usr/local/bin/pilot-agent \
 # What differs from one build to the next: paths and times in compiled code, and records of them.
 && find /usr/local -name '*.so' -exec strip --strip-unneeded --remove-section=.note.gnu.build-id {} + \
 && find /usr/local '(' -name direct_url.json -o -name RECORD ')' -delete \
 && python3 -m compileall -q --invalidation-mode unchecked-hash /usr/local/lib

FROM debian:trixie-slim
LABEL org.opencontainers.image.title="istio-iptables" \
      org.opencontainers.image.description="Istio's iptables rules: print, install, compare and explain them" \
      org.opencontainers.image.licenses="Apache-2.0"
ARG DEBIAN_FRONTEND=noninteractive
RUN apt-get update \
 && apt-get install -y --no-install-recommends iptables python3 \
 # The lists, and what holds the time of the installation.
 && rm -rf /var/lib/apt/lists/* /var/cache/* /var/log/* /etc/*- /var/lib/dpkg/*-old
COPY --from=build /usr/local /usr/local
ENTRYPOINT ["istio-iptables"]
