//! HTTP for the honcho extension.
#![forbid(unsafe_code)]
fn main() {}
