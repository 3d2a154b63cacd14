# A small image with the binary, the C library and the certificates, without a shell.

FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
# For `keystile --version`: docker build --build-arg KEYSTILE_COMMIT="$(tools/commit)"
ARG KEYSTILE_COMMIT=unknown
# The binary of `make release`.
RUN tools/build-binary

# The folder of the default database, sqlite:keystile.db: mount a volume there to keep it. And the folder of the Unix socket
# in the configurations in envoy/: share it with Envoy's container. Group 0 may write to both, so that any user id of that
# group can run the image, as OpenShift does.
RUN mkdir -p /folders/var/lib/keystile /folders/run/keystile \
    && chmod 0770 /folders/var/lib/keystile /folders/run/keystile

# Debian 12 as above, so that the C library is the same. The binary needs no other library.
FROM gcr.io/distroless/base-debian12:nonroot
COPY --from=build /src/target/release/keystile /usr/local/bin/keystile
# The parent folders, so that the mode of the new ones is kept.
COPY --from=build --chown=65532:0 /folders/var/lib/ /var/lib/
COPY --from=build --chown=65532:0 /folders/run/ /run/
WORKDIR /var/lib/keystile

# On loopback, the default of both, nothing outside the container could connect. [::] is every address, of IPv4 too.
ENV KEYSTILE_LISTEN=[::]:9191 \
    KEYSTILE_ADMIN_LISTEN=[::]:9192
EXPOSE 9191 9192

# No setting of an image switches core dumps off. The process does it itself.
# The number, not the name: Kubernetes can verify that a number is not root.
USER 65532:65532
ENTRYPOINT ["/usr/local/bin/keystile"]
CMD ["serve"]
