# Stands in for the official `rust` image where none can be pulled: this machine's own toolchain on a base of
# this machine's making. The context holds `toolchain/` (bin and lib of the sysroot), `cargo/` and `target/` (the
# dependencies, as sources and compiled; Cargo compares their paths, hence CARGO_HOME) and `ca-certificates.crt`.
FROM debian:bookworm-slim
ARG CARGO_HOME
RUN apt-get update \
 && apt-get install -y --no-install-recommends gcc libc6-dev make pkg-config \
 && rm -rf /var/lib/apt/lists/*
COPY ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY toolchain /usr/local
ENV CARGO_HOME=${CARGO_HOME}
COPY cargo ${CARGO_HOME}
COPY target /src/target
RUN cargo --version && rustc --version
