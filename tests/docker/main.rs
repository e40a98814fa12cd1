//! The stacks of docker-compose.yml and docker-compose.shards.yml, tested from outside. `make test-docker` builds the images and sets the
//! engine's address. The tests run one at a time, because they stop and restart shared containers.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod images;
mod outage;
mod rights;
mod sale;
mod shards;
mod stack;
