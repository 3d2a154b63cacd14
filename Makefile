# `make` alone lists the targets.

# The folder that cargo builds in; cargo reads the same variable.
TARGET_DIR := $(or $(CARGO_TARGET_DIR),target)
# `make check LOCKED=--locked` refuses a stale Cargo.lock, as CI does.
LOCKED ?=

# Versions of servers that the tests run, such as "postgres-18 redis-8.2": files of tools/servers. The machine's own by default.
SERVERS ?=

# Tests wait for servers more than they compute.
export RUST_TEST_THREADS ?= $(shell echo $$(($$(nproc) + 1)))

ENVOY_VERSIONS := 1.40.0 1.36.4
ENVOY := .tools/envoy-$(firstword $(ENVOY_VERSIONS))/envoy

.PHONY: help demo check fmt clippy doc deny advisories test compat torture soak feed-generator fuzz bench instructions release reproducible try-package tools clean
.DEFAULT_GOAL := help

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: ## show Keystile at work behind a real Envoy (DEMO=once ends by itself)
	cargo build $(LOCKED)
	tools/fetch-envoy $(firstword $(ENVOY_VERSIONS))
	python3 demo/demo.py --keystile $(TARGET_DIR)/debug/keystile --envoy $(ENVOY) $(if $(filter once,$(DEMO)),--once)

check: fmt clippy doc deny test ## run all checks before a commit

fmt: ## check the formatting (cargo fmt fixes it)
	cargo fmt --check

clippy: ## run the lints; warnings fail
	cargo clippy $(LOCKED) --all-targets -- -D warnings

doc: ## build the rustdoc; warnings fail
	RUSTDOCFLAGS="-D warnings" cargo doc $(LOCKED) --no-deps

deny: ## licences, sources and bans of the dependencies
	tools/fetch-cargo-deny
	.tools/cargo-deny/bin/cargo-deny --all-features --locked check licenses bans sources

advisories: ## known vulnerabilities of the dependencies; fetches their database
	tools/fetch-cargo-deny
	.tools/cargo-deny/bin/cargo-deny --all-features --locked check advisories

test: tools ## run all tests, with real Envoy, Postgres and Redis (SERVERS="postgres-18 redis-8.2" chooses versions)
	$(if $(SERVERS),tools/with-servers $(SERVERS) --) cargo test $(LOCKED)

compat: tools ## test the oldest and newest Postgres, Redis and Valkey (COMPAT=newest in two minutes, COMPAT=all every version, COMPAT=postgres-14+valkey-9.1 a set)
	tools/compat $(COMPAT)

torture: tools ## let everything fail under load, and judge each answer, TORTURE_SECONDS=270 (TORTURE_SEED repeats a run)
	KEYSTILE_TEST_SECONDS=$(or $(TORTURE_SECONDS),270) $(if $(TORTURE_SEED),KEYSTILE_TEST_SEED=$(TORTURE_SEED)) \
	    cargo test $(LOCKED) --test integration torture::nothing -- --nocapture

soak: tools ## let keys and connections come and go, and measure growth, SOAK_SECONDS=600
	KEYSTILE_TEST_SECONDS=$(or $(SOAK_SECONDS),600) $(if $(SOAK_SEED),KEYSTILE_TEST_SEED=$(SOAK_SEED)) \
	    cargo test $(LOCKED) --test integration torture::soak -- --include-ignored --nocapture

feed-generator: ## test the change feed with random databases, FEED_SECONDS=600 (FEED_SEED repeats a run, FEED_WORLD one world)
	tools/need-postgres
	tools/need-redis
	KEYSTILE_TEST_SECONDS=$(or $(FEED_SECONDS),600) \
	    $(if $(FEED_SEED),KEYSTILE_TEST_SEED=$(FEED_SEED)) $(if $(FEED_WORLD),KEYSTILE_TEST_WORLD=$(FEED_WORLD)) \
	    cargo test $(LOCKED) --test integration feed_generator -- --nocapture

fuzz: ## fuzz the parsers, FUZZ_SECONDS=60 for each target
	fuzz/run

bench: ## measure what the README claims and write its tables (BENCH=quick keeps nothing)
	tools/need-postgres
	tools/need-redis
	tools/need-wrk
	tools/fetch-envoy $(firstword $(ENVOY_VERSIONS))
	cargo build $(LOCKED) --release --bin keystile --examples
	python3 benches/bench.py $(BENCH)

instructions: ## count the instructions of a check, and fail if there are more than recorded (RECORD=yes records)
	tools/need-valgrind
	cargo build $(LOCKED) --profile instructions --bin keystile
	cargo build $(LOCKED) --examples
	python3 benches/instructions.py $(if $(RECORD),--record)

release: ## make binary, .deb, tarball, SBOM and checksums in target/release-artifacts
	tools/fetch-cargo-deb
	tools/fetch-cargo-cyclonedx
	tools/fetch-kubernetes
	tools/build-binary
	tools/package

reproducible: ## make the release of the current commit twice, in different folders, and compare
	tools/fetch-cargo-deb
	tools/fetch-cargo-cyclonedx
	tools/fetch-kubernetes
	tools/reproduce $(SCRATCH)

try-package: ## install, use, upgrade and remove the .deb of `make release` in a new Debian (as root)
	tools/need-debootstrap
	tools/try-package $(wildcard target/release-artifacts/*.deb)

tools: ## install the programs that the tests run
	tools/need-postgres
	tools/need-redis
	tools/need-openssl
	tools/fetch-envoy $(ENVOY_VERSIONS)
	tools/fetch-backend
	tools/fetch-api-checks
	tools/fetch-model-clients
	tools/fetch-kubernetes
	tools/fetch-hadolint

clean: ## remove everything that was built or fetched
	cargo clean
	rm -rf .tools fuzz/target
