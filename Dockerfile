# The image for whoever has docker (or podman) and not the tools of packaging/release, which makes the one that is released:
# the same static binary, files, user and command, but not the same bytes twice, and without the list of its parts.
#
#     docker build --build-arg REVISION="$(git rev-parse HEAD)" --tag gatepost .

FROM docker.io/library/rust:1.95-bookworm AS build
WORKDIR /build/gatepost
COPY . .
# With --target, build scripts and macros, which can't be static, are compiled without the flags.
ENV RUSTFLAGS='-C target-feature=+crt-static --cfg getrandom_backend="linux_getrandom"' CARGO_PROFILE_RELEASE_STRIP=symbols
ARG REVISION=unknown
ENV GATEPOST_BUILD_REVISION="$REVISION"
RUN target="$(uname -m)-unknown-linux-gnu" \
 && cargo build --locked --release --bin gatepost --target "$target" \
 && packaging/rootfs "target/$target/release/gatepost" /image

FROM scratch
ARG REVISION=unknown
LABEL org.opencontainers.image.title="gatepost" \
      org.opencontainers.image.description="A policy decision point: may this principal, through this service, do this to that object, and to which of its fields?" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build --chown=0:0 /image/root/ /
COPY --from=build --chown=65532:65532 /image/owned/ /var/lib/
USER 65532:65532
WORKDIR /
EXPOSE 8443 9443
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/bin/gatepost"]
CMD ["serve", "--config", "/etc/gatepost/config/gatepost.yaml"]
