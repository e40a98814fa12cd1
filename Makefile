# Every job is one command; a job that needs more than a line is in scripts/.
# PG=16 make … uses PostgreSQL 16 instead of the one that scripts/setup chooses.

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup run build test test-unit test-pgrx test-regress test-isolation test-it test-openapi \
	test-scale test-one test-upgrade test-pg17 test-pg18 package test-package test-docker lint advisories bench psql \
	url up down docs clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## install missing tools and prepare .honcho; the other targets do it themselves
	@scripts/setup

build: setup ## build the extension and the service, optimised
	@scripts/build

run: build ## start a private PostgreSQL and the service until Ctrl+C; PORT=9000 make run
	@scripts/run

test: build ## run all test tiers that need no other system: unit to openapi
	@scripts/setup it
	@scripts/setup openapi
	@scripts/test unit pgrx regress isolation it openapi

test-unit: setup ## Rust unit tests of the service and of the test fixtures
	@scripts/test unit

test-pgrx: setup ## Rust tests inside PostgreSQL: cargo pgrx test
	@scripts/test pgrx

test-regress: build ## SQL with expected output: tests/regress
	@scripts/test regress

test-isolation: build ## interleaved sessions with expected output: tests/isolation
	@scripts/test isolation

test-it: build ## integration tests with a real cluster and real HTTP: tests/it
	@scripts/setup it
	@scripts/test it

test-openapi: build ## the OpenAPI description with schemathesis, and /docs in a browser
	@scripts/setup openapi
	@scripts/test openapi

test-scale: build ## shards, routers, failover with Patroni, poolers: all about more than one machine
	@scripts/setup scale
	@scripts/test scale

test-one: build ## run the integration tests with T in their names: make test-one T=flash_sale
	@scripts/setup it
	@scripts/test-one '$(T)'

test-upgrade: build ## upgrades from every release, then the SQL tiers on an upgraded installation
	@scripts/setup it
	@scripts/test upgrade

test-pg17: ## build and run make test on Debian trixie with PostgreSQL 17, in a tree of its own
	@scripts/setup debian
	@scripts/test-on trixie 17

test-pg18: ## the same on Debian forky with PostgreSQL 18
	@scripts/setup debian
	@scripts/test-on forky 18

package: build ## write a tarball and Debian packages of extension and service to dist/
	@scripts/setup package
	@scripts/package

test-package: package ## install the packages in a clean Debian and claim a coupon there
	@scripts/test package

test-docker: ## build the images, start docker-compose.yml, and test it
	@scripts/setup docker
	@scripts/test docker

lint: build ## check released SQL, spelling, Rust, scripts, licences and alert rules; a warning is an error
	@scripts/setup lint
	@scripts/lint

advisories: ## look up published advisories about the dependencies; needs the network
	@scripts/setup advisories
	@scripts/advisories

bench: build ## measure Honcho and its peers: make bench ARGS='--rounds 1'
	@scripts/env cargo build --release -p honcho-service --example bare
	@scripts/env cargo run --release -p honcho-tests --bin honcho-bench -- $(ARGS)

psql: ## open psql on the running private cluster
	@scripts/cluster psql

url: ## print the connection string of the running private cluster: make -s url
	@scripts/cluster url

up: ## build the images and start PostgreSQL and the service in containers; see .env.example
	@scripts/up

down: ## stop the containers; the data stays
	@scripts/compose down

docs: ## build the documentation into a site with search: .honcho/docs/book
	@scripts/setup docs
	@scripts/docs

clean: ## remove all build output, and the private cluster with its data
	@scripts/clean
