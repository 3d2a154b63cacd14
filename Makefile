# `make` alone lists the targets.

# Where cargo builds; it reads the same variable.
TARGET_DIR := $(or $(CARGO_TARGET_DIR),target)
# `make check LOCKED=--locked` refuses a stale Cargo.lock, as CI does.
LOCKED ?=

ENVOY_VERSIONS := 1.40.0 1.36.4
ENVOY := .tools/envoy-$(firstword $(ENVOY_VERSIONS))/envoy

.PHONY: help demo check fmt clippy doc test feed-generator fuzz bench instructions tools clean
.DEFAULT_GOAL := help

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: ## run Keystile behind Envoy and show it at work (DEMO=once ends by itself)
	cargo build $(LOCKED)
	tools/fetch-envoy $(firstword $(ENVOY_VERSIONS))
	python3 demo/demo.py --keystile $(TARGET_DIR)/debug/keystile --envoy $(ENVOY) $(if $(filter once,$(DEMO)),--once)

check: fmt clippy doc test ## everything that must hold before a commit

fmt: ## is the code formatted? (mend it with: cargo fmt)
	cargo fmt --check

clippy: ## lints, warnings denied
	cargo clippy $(LOCKED) --all-targets -- -D warnings

doc: ## the documentation builds, warnings denied
	RUSTDOCFLAGS="-D warnings" cargo doc $(LOCKED) --no-deps

test: tools ## all tests, with real Envoy, Postgres and Redis
	cargo test $(LOCKED)

feed-generator: ## random databases against the change feed, FEED_SECONDS=600 (FEED_SEED repeats a run, FEED_WORLD one world)
	tools/need-postgres
	tools/need-redis
	KEYSTILE_TEST_SECONDS=$(or $(FEED_SECONDS),600) \
	    $(if $(FEED_SEED),KEYSTILE_TEST_SEED=$(FEED_SEED)) $(if $(FEED_WORLD),KEYSTILE_TEST_WORLD=$(FEED_WORLD)) \
	    cargo test $(LOCKED) --test integration feed_generator -- --nocapture

fuzz: ## look for inputs that break the parsers, FUZZ_SECONDS=60 each
	tools/fetch-cargo-fuzz
	fuzz/run

bench: ## measure what the README claims, side by side (BENCH=quick for a glance)
	tools/need-postgres
	tools/need-redis
	tools/need-wrk
	tools/fetch-envoy $(firstword $(ENVOY_VERSIONS))
	cargo build $(LOCKED) --release --bin keystile --examples
	python3 benches/bench.py $(BENCH)

instructions: ## count those of a hot check, and fail if there are more than recorded (RECORD=yes records)
	tools/need-valgrind
	cargo build $(LOCKED) --profile instructions --bin keystile
	cargo build $(LOCKED) --examples
	python3 benches/instructions.py $(if $(RECORD),--record)

tools: ## fetch what the tests run against
	tools/need-postgres
	tools/need-redis
	tools/fetch-envoy $(ENVOY_VERSIONS)
	tools/fetch-openai
	tools/fetch-kubernetes

clean: ## remove what was built and fetched
	cargo clean
	rm -rf .tools fuzz/target
