# Every job is one command; what needs more than a line is in scripts/.
# PG=16 make … chooses another PostgreSQL than the one that scripts/setup would.

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup run build test test-unit test-pgrx test-regress test-isolation test-it test-openapi \
	test-upgrade test-pg17 test-pg18 package test-package test-docker lint bench psql url up down docs clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## install what is missing and prepare .honcho (every other target does it by itself)
	@scripts/setup

build: setup ## build the extension and the service, optimised
	@scripts/build

run: build ## start a private PostgreSQL and the service, until Ctrl+C; PORT=9000 make run
	@scripts/run

test: build ## run every test tier
	@scripts/setup it
	@scripts/setup openapi
	@scripts/test unit pgrx regress isolation it openapi

test-unit: setup ## Rust unit tests of the service
	@scripts/test unit

test-pgrx: setup ## tests inside PostgreSQL: cargo pgrx test
	@scripts/test pgrx

test-regress: build ## golden SQL: tests/regress
	@scripts/test regress

test-isolation: build ## interleaved sessions: tests/isolation
	@scripts/test isolation

test-it: build ## integration tests over a real cluster and real HTTP
	@scripts/setup it
	@scripts/test it

test-openapi: build ## the API's description: schemathesis, and a browser that claims a coupon in /docs
	@scripts/setup openapi
	@scripts/test openapi

test-upgrade: build ## upgrades from every release, and every tier on an upgraded installation
	@scripts/setup it
	@scripts/test upgrade

test-pg17: ## build and run every test tier on Debian trixie with its PostgreSQL 17, in a tree of its own
	@scripts/setup debian
	@scripts/test-on trixie 17

test-pg18: ## the same on Debian forky with its PostgreSQL 18
	@scripts/setup debian
	@scripts/test-on forky 18

package: build ## pack the extension and the service into dist/: tarball and Debian packages
	@scripts/setup package
	@scripts/package

test-package: package ## install the packages in a clean Debian and claim a coupon there
	@scripts/test package

test-docker: ## the images and docker-compose.yml, for real
	@scripts/setup docker
	@scripts/test docker

lint: build ## released SQL, rustfmt, clippy, rustdoc, shellcheck, pgspot, dependencies, alert rules; warnings denied
	@scripts/setup lint
	@scripts/lint

bench: build ## measure against the peers: make bench ARGS='--rounds 1'
	@scripts/env cargo build --release -p honcho-service --example bare
	@scripts/env cargo run --release -p honcho-tests --bin honcho-bench -- $(ARGS)

psql: ## open psql on the private cluster while it runs
	@scripts/cluster psql

url: ## print the private cluster's connection string while it runs: make -s url
	@scripts/cluster url

up: ## build the images and start PostgreSQL and the service in containers; .env.example tells more
	@scripts/up

down: ## stop the containers; the data stays
	@scripts/compose down

docs: ## build the documentation into a site with search: .honcho/docs/book
	@scripts/setup docs
	@scripts/docs

clean: ## remove build output and the private cluster with its data
	@scripts/clean
