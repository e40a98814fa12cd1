//! Who may do what: bearer tokens (RFC 6750), ours or JSON Web Tokens, each with its scopes.
//!
//! [`Access::identify`] looks at a request's token before anything else of the request is looked at;
//! the extractors `Claimer`, `Reader` and `Admin` then hold it against what the route asks for,
//! before the body is read.

mod jwt;
mod tokens;

use std::{fmt, sync::Arc};

use arc_swap::ArcSwap;
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

/// The longest token that is looked at, in bytes. Longer ones cost time before their signature is known.
const LONGEST_TOKEN: usize = 8 * 1024;

/// The rules of access. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Access(Option<Arc<ArcSwap<Rules>>>);

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
    /// One of the configured tokens, by the beginning of its digest: that stays the same when the tokens
    /// are read anew.
    Token(u64),
    /// The subject of a JSON Web Token.
    Subject(Arc<str>),
}

impl Access {
    /// Lets in whoever shows one of `tokens` or what `jwt` accepts. Without either, everybody.
    pub fn new(tokens: Tokens, jwt: Option<Jwt>) -> Self {
        if tokens.is_empty() && jwt.is_none() {
            Self(None)
        } else {
            Self(Some(Arc::new(ArcSwap::from_pointee(Rules { tokens, jwt }))))
        }
    }

    /// Holds to the rules of `new` from now on, in all clones. Gives in words what has changed.
    ///
    /// # Errors
    /// One of the two needs tokens and the other does not: that changes with a restart alone.
    pub fn replace(&self, new: &Self) -> Result<String, &'static str> {
        match (&self.0, &new.0) {
            (None, None) => Ok("no tokens are configured".to_owned()),
            (Some(rules), Some(new)) => {
                let new = new.load_full();
                let old = rules.swap(Arc::clone(&new));
                let keys = match (&old.jwt, &new.jwt) {
                    (None, None) => "none",
                    (Some(old), Some(new)) if old.has_same_keys(new) => "as before",
                    _ => "changed",
                };
                let tokens = new.tokens.changes_since(&old.tokens);
                Ok(format!("tokens: {tokens}; keys of JSON Web Tokens: {keys}"))
            }
            _ => Err("only a restart changes whether callers need a token at all"),
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
        if token.len() > LONGEST_TOKEN {
            return Err(Error::Unauthorized(Some("the token is longer than 8 kB")));
        }
        let rules = rules.load();
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

/// A caller who may read one user's claims: with the scope `read` anybody's, with `claim` the subject's of its
/// own JSON Web Token.
#[derive(Debug)]
pub(crate) struct ClaimReader(Option<Caller>);

impl ClaimReader {
    /// Returns true if this caller may see the claims of this user.
    ///
    /// # Errors
    /// [`Error::Forbidden`], naming the scope that would do.
    pub fn sees(&self, user_id: &str) -> Result<(), Error> {
        if self.own() == Some(user_id) {
            Ok(())
        } else {
            self.sees_all()
        }
    }

    /// Returns true if this caller may see the claims of all users.
    ///
    /// # Errors
    /// [`Error::Forbidden`], naming the scope that would do.
    pub fn sees_all(&self) -> Result<(), Error> {
        match &self.0 {
            Some(caller) if !caller.scopes.holds(Scope::Read) => Err(Error::Forbidden(Scope::Read)),
            _ => Ok(()),
        }
    }

    /// The user for whom this caller claims, if there is one alone.
    fn own(&self) -> Option<&str> {
        match &self.0 {
            Some(Caller {
                identity: Identity::Subject(subject),
                scopes,
            }) if scopes.holds(Scope::Claim) => Some(subject),
            _ => None,
        }
    }
}

impl<S: Sync> FromRequestParts<S> for ClaimReader
where
    Access: FromRef<S>,
{
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Error> {
        let reader = Self(identified(parts, &Access::from_ref(state))?);
        if reader.own().is_none() {
            reader.sees_all()?;
        }
        Ok(reader)
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
    match identified(parts, access)? {
        Some(caller) if !caller.scopes.holds(scope) => Err(Error::Forbidden(scope)),
        caller => Ok(caller),
    }
}

/// Takes the caller whom admission has identified; none where nobody needs a token.
fn identified(parts: &mut Parts, access: &Access) -> Result<Option<Caller>, Error> {
    if access.is_open() {
        return Ok(None);
    }
    // Nobody comes here unidentified; if one did, here it would end.
    let caller = parts.extensions.remove::<Caller>();
    caller.map(Some).ok_or(Error::Unauthorized(None))
}
