//! Extractors: the parts of a request that routes work with.

pub(crate) mod body;
pub(crate) mod caller;
pub(crate) mod fields;
pub(crate) mod key;
pub(crate) mod lanes;
pub(crate) mod page;
pub(crate) mod resume;
