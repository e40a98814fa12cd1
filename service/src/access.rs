//! Who may do what: bearer tokens (RFC 6750), ours or JSON Web Tokens, each with its scopes.
//!
//! [`Access::identify`] looks at a request's token before anything else of the request is looked at;
//! the extractors `Claimer`, `Reader` and `Admin` then hold it against what the route asks for,
//! before the body is read.

mod jwt;
mod tokens;

use std::{fmt, sync::Arc};

use axum::{
    extract::{FromRef, FromRequestParts},
    http::{HeaderMap, header::AUTHORIZATION, request::Parts},
};

pub use jwt::Jwt;
pub use tokens::Tokens;

use crate::error::Error;

/// What a token allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Claiming.
    Claim,
    /// Reading coupons and claims.
    Read,
    /// Creating coupons.
    Admin,
}

impl Scope {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Claim, Self::Read, Self::Admin];

    /// Its name in tokens.
    pub fn name(self) -> &'static str {
        match self {
            Self::Claim => "claim",
            Self::Read => "read",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// A set of scopes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scopes(u8);

impl Scopes {
    fn holds(self, scope: Scope) -> bool {
        self.0 & (1 << scope as u8) != 0
    }

    /// Adds the scope of this name; false where there is none.
    fn add(&mut self, name: &str) -> bool {
        let scope = Scope::ALL.into_iter().find(|scope| scope.name() == name);
        if let Some(scope) = scope {
            self.0 |= 1 << scope as u8;
        }
        scope.is_some()
    }
}

/// The rules of access. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Access(Option<Arc<Rules>>);

#[derive(Debug)]
struct Rules {
    tokens: Tokens,
    jwt: Option<Jwt>,
}

/// Whose request it is.
#[derive(Clone, Debug)]
pub struct Caller {
    /// Which of our tokens was shown, or whom a JSON Web Token is about.
    pub identity: Identity,
    scopes: Scopes,
}

/// What tells a caller from others.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Identity {
    /// One of the configured tokens, by its place among them.
    Token(usize),
    /// The subject of a JSON Web Token.
    Subject(Arc<str>),
}

impl Access {
    /// Lets in whoever shows one of `tokens` or what `jwt` accepts. Without either, everybody.
    pub fn new(tokens: Tokens, jwt: Option<Jwt>) -> Self {
        if tokens.is_empty() && jwt.is_none() {
            Self(None)
        } else {
            Self(Some(Arc::new(Rules { tokens, jwt })))
        }
    }

    /// Whether nobody needs a token.
    pub fn is_open(&self) -> bool {
        self.0.is_none()
    }

    /// Whose request this is; none where nobody needs a token.
    ///
    /// # Errors
    /// [`Error::Unauthorized`] without a token that is accepted.
    pub fn identify(&self, headers: &HeaderMap) -> Result<Option<Caller>, Error> {
        let Some(rules) = &self.0 else {
            return Ok(None);
        };
        let mut given = headers.get_all(AUTHORIZATION).iter();
        let Some(value) = given.next() else {
            return Err(Error::Unauthorized(None));
        };
        if given.next().is_some() {
            return Err(Error::Unauthorized(Some("there is more than one token")));
        }
        let token = value
            .as_bytes()
            .split_at_checked(7)
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case(b"Bearer "))
            .map(|(_, token)| token.trim_ascii());
        // Of another scheme we know nothing.
        let Some(token) = token else {
            return Err(Error::Unauthorized(None));
        };
        let caller = match (rules.tokens.find(token), &rules.jwt) {
            (Some(caller), _) => Ok(caller),
            (None, Some(jwt)) => jwt.verify(token),
            (None, None) => Err("the token is not known"),
        };
        caller
            .map(Some)
            .map_err(|reason| Error::Unauthorized(Some(reason)))
    }
}

/// A caller with the scope `claim`; none where nobody needs a token.
#[derive(Debug)]
pub(crate) struct Claimer(Option<Caller>);

impl Claimer {
    /// Whether this caller may claim for `user_id`: a JSON Web Token claims for its subject alone.
    pub fn claims_for(&self, user_id: &str) -> Result<(), Error> {
        match &self.0 {
            Some(Caller {
                identity: Identity::Subject(subject),
                ..
            }) if **subject != *user_id => Err(Error::ForeignSubject),
            _ => Ok(()),
        }
    }
}

impl<S: Sync> FromRequestParts<S> for Claimer
where
    Access: FromRef<S>,
{
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Error> {
        admitted(parts, &Access::from_ref(state), Scope::Claim).map(Self)
    }
}

/// A caller with the scope `read`.
#[derive(Debug)]
pub(crate) struct Reader;

impl<S: Sync> FromRequestParts<S> for Reader
where
    Access: FromRef<S>,
{
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Error> {
        admitted(parts, &Access::from_ref(state), Scope::Read).map(|_| Self)
    }
}

/// A caller with the scope `admin`.
#[derive(Debug)]
pub(crate) struct Admin;

impl<S: Sync> FromRequestParts<S> for Admin
where
    Access: FromRef<S>,
{
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Error> {
        admitted(parts, &Access::from_ref(state), Scope::Admin).map(|_| Self)
    }
}

/// Holds the caller against `scope`.
fn admitted(parts: &mut Parts, access: &Access, scope: Scope) -> Result<Option<Caller>, Error> {
    if access.is_open() {
        return Ok(None);
    }
    // Nobody comes here unidentified; if one did, here it would end.
    let caller = parts.extensions.remove::<Caller>();
    let caller = caller.ok_or(Error::Unauthorized(None))?;
    if caller.scopes.holds(scope) {
        Ok(Some(caller))
    } else {
        Err(Error::Forbidden(scope))
    }
}
