//! What docker-compose.yml brings up, from outside: `make test-docker` builds the images and says
//! where the engine is. The tests take turns, for they stop and restart what they share.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod images;
mod outage;
mod rights;
mod sale;
mod stack;
