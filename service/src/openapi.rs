//! The interface's own description: an OpenAPI document made from the handlers, and pages that show it.

mod document;
mod pages;

pub(crate) use document::{answers, base, finish, problems};
pub(crate) use pages::pages;

/// Makes a type that stands for these errors in a handler's documentation, besides those that every
/// route of the API has.
macro_rules! problem_type {
    ($(#[$meta:meta])* $name:ident: $($error:expr),+ $(,)?) => {
        $(#[$meta])*
        pub(crate) struct $name;

        impl utoipa::IntoResponses for $name {
            fn responses() -> std::collections::BTreeMap<
                String,
                utoipa::openapi::RefOr<utoipa::openapi::Response>,
            > {
                $crate::openapi::problems([$($error),+])
            }
        }
    };
}

pub(crate) use problem_type;
