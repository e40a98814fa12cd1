//! The API's description: an OpenAPI document made from the routes.

mod document;

pub(crate) use document::{answers, base, finish, methods, problems};

/// Makes a type that documents the errors of a route, besides those of every route. After a semicolon comes an iterator
/// of further errors.
macro_rules! problem_type {
    ($(#[$meta:meta])* $name:ident: $($error:expr),+ $(,)? $(; $more:expr)?) => {
        $(#[$meta])*
        pub(crate) struct $name;

        impl utoipa::IntoResponses for $name {
            fn responses() -> std::collections::BTreeMap<
                String,
                utoipa::openapi::RefOr<utoipa::openapi::Response>,
            > {
                let errors = [$($error),+].into_iter();
                $(let errors = errors.chain($more);)?
                $crate::http::openapi::problems(errors)
            }
        }
    };
}

pub(crate) use problem_type;
