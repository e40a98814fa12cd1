//! Tests that run inside PostgreSQL.
