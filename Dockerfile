# A small image with the binary, the C library and the certificates, without a shell.

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

# The folder of the default database, sqlite:keystile.db. Mount a volume here to keep it.
COPY --from=build --chown=65532:65532 /empty /var/lib/keystile
# The folder of the Unix socket in the configurations in envoy/. Share it with Envoy's container.
COPY --from=build --chown=65532:65532 /empty /run/keystile
WORKDIR /var/lib/keystile

# On loopback, the default of both, nothing outside the container could connect.
ENV KEYSTILE_LISTEN=0.0.0.0:9191 \
    KEYSTILE_ADMIN_LISTEN=0.0.0.0:9192
EXPOSE 9191 9192

# No setting of an image switches core dumps off. The process does it itself.
# The number, not the name: Kubernetes can verify that a number is not root.
USER 65532:65532
ENTRYPOINT ["/usr/local/bin/keystile"]
CMD ["serve"]
