//! Integration tests over a real cluster and real HTTP.
