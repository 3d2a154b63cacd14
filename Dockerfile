# Keystile in a small image: the binary, the C library, the certificates, and no shell.

FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
# For keystile_build_info: docker build --build-arg KEYSTILE_COMMIT="$(git rev-parse --short HEAD)"
ARG KEYSTILE_COMMIT=unknown
RUN cargo build --release --locked --bin keystile \
    && mkdir -p /empty

# Debian 12 as above, so that the C library is the same.
FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /src/target/release/keystile /usr/local/bin/keystile

# Where the default database, sqlite:keystile.db, is made; mount a volume here to keep it.
COPY --from=build --chown=65532:65532 /empty /var/lib/keystile
# Where Envoy's example configs look for the Unix socket; share it with Envoy's container.
COPY --from=build --chown=65532:65532 /empty /run/keystile
WORKDIR /var/lib/keystile

# Loopback, the default of both, would reach nobody outside the container.
ENV KEYSTILE_LISTEN=0.0.0.0:9191 \
    KEYSTILE_ADMIN_LISTEN=0.0.0.0:9192
EXPOSE 9191 9192

# The number rather than the name, since Kubernetes can tell of a number that it is not root.
USER 65532:65532
ENTRYPOINT ["/usr/local/bin/keystile"]
CMD ["serve"]
