//! Authentication and authorization: bearer tokens (RFC 6750), the service's own or JSON Web Tokens, each with
//! its scopes.
//!
//! [`Policy::identify`] authenticates a request by its `Authorization` header; [`Caller`] answers what it may
//! do. Nothing here knows HTTP beyond that header's value.

mod jwt;
mod scope;
mod tokens;

use std::sync::Arc;

use arc_swap::ArcSwap;

pub use jwt::Jwt;
pub use scope::{Scope, Scopes};
pub use tokens::Tokens;

/// The longest label of a caller, in characters.
const LONGEST_LABEL: usize = 255;

/// The longest token that is checked, in bytes. Longer ones cost time before their signature is known.
const LONGEST_TOKEN: usize = 8 * 1024;

/// Reason why a request is not authenticated or not authorized.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// The request has no bearer token.
    #[error("no bearer token")]
    NoToken,
    /// The token is not accepted, for this reason.
    #[error("{0}")]
    InvalidToken(&'static str),
    /// The token lacks this scope.
    #[error("no scope {0}")]
    NoScope(Scope),
    /// The token's subject is another user than the one that the request is for.
    #[error("another user's token")]
    ForeignSubject,
}

/// The accepted tokens. Clones share them.
///
/// ```
/// use honcho_service::auth::{Denied, Policy, Scope, Tokens};
///
/// let tokens = Tokens::parse("0123456789abcdef:claim,read").expect("a token and its scopes");
/// let policy = Policy::new(tokens, None);
///
/// let caller = policy.identify([&b"Bearer 0123456789abcdef"[..]].into_iter()).expect("an accepted token");
/// let caller = caller.expect("the service is not open");
/// assert_eq!(caller.require(Scope::Claim), Ok(()));
/// assert_eq!(caller.require(Scope::Admin), Err(Denied::NoScope(Scope::Admin)));
///
/// assert!(matches!(policy.identify([].into_iter()), Err(Denied::NoToken)));
/// ```
#[derive(Clone, Debug, Default)]
pub struct Policy(Option<Arc<ArcSwap<Credentials>>>);

#[derive(Debug)]
struct Credentials {
    tokens: Tokens,
    jwt: Option<Jwt>,
}

/// An authenticated caller.
#[derive(Clone, Debug)]
pub struct Caller {
    id: CallerId,
    scopes: Scopes,
}

/// Identity of a caller.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum CallerId {
    /// One of the configured tokens, by the beginning of its SHA-256 digest, which stays the same when the tokens are
    /// reloaded.
    Token([u8; 8]),
    /// Subject of a JSON Web Token.
    Subject(Arc<str>),
}

impl Policy {
    /// Accepts `tokens` and the JSON Web Tokens that `jwt` verifies. Without either, the service is open: no
    /// caller needs a token.
    pub fn new(tokens: Tokens, jwt: Option<Jwt>) -> Self {
        if tokens.is_empty() && jwt.is_none() {
            Self(None)
        } else {
            let credentials = Credentials { tokens, jwt };
            Self(Some(Arc::new(ArcSwap::from_pointee(credentials))))
        }
    }

    /// Replaces the accepted tokens by those of `new`, in all clones. Returns a summary of the changes.
    ///
    /// # Errors
    /// One of the two is open and the other is not: only a restart changes that.
    pub fn replace(&self, new: &Self) -> Result<String, &'static str> {
        match (&self.0, &new.0) {
            (None, None) => Ok("no tokens are configured".to_owned()),
            (Some(credentials), Some(new)) => {
                let new = new.load_full();
                let old = credentials.swap(Arc::clone(&new));
                let jwt = match (&old.jwt, &new.jwt) {
                    (None, None) => "none",
                    (Some(old), Some(new)) if old.accepts_the_same(new) => "unchanged",
                    _ => "changed",
                };
                let tokens = new.tokens.changes_since(&old.tokens);
                Ok(format!(
                    "tokens: {tokens}; keys, issuer and audience of JSON Web Tokens: {jwt}"
                ))
            }
            _ => Err("only a restart changes whether callers need a token at all"),
        }
    }

    /// Returns true if no caller needs a token.
    pub fn is_open(&self) -> bool {
        self.0.is_none()
    }

    /// Authenticates a request by the values of its `Authorization` headers. Returns no caller if the service
    /// is open.
    ///
    /// # Errors
    /// [`Denied::NoToken`] and [`Denied::InvalidToken`].
    pub fn identify<'a>(
        &self,
        mut authorization: impl Iterator<Item = &'a [u8]>,
    ) -> Result<Option<Caller>, Denied> {
        let Some(credentials) = &self.0 else {
            return Ok(None);
        };
        let value = authorization.next().ok_or(Denied::NoToken)?;
        if authorization.next().is_some() {
            return Err(Denied::InvalidToken("there is more than one token"));
        }
        let token = value
            .split_at_checked(7)
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case(b"Bearer "))
            .map(|(_, token)| token.trim_ascii());
        // Other schemes are unknown here.
        let token = token.ok_or(Denied::NoToken)?;
        if token.len() > LONGEST_TOKEN {
            return Err(Denied::InvalidToken("the token is longer than 8 kB"));
        }
        let credentials = credentials.load();
        let caller = match (credentials.tokens.find(token), &credentials.jwt) {
            (Some(caller), _) => Ok(caller),
            (None, Some(jwt)) => jwt.verify(token),
            (None, None) => Err("the token is not known"),
        };
        caller.map(Some).map_err(Denied::InvalidToken)
    }
}

impl Caller {
    /// Identity of this caller.
    pub fn id(&self) -> &CallerId {
        &self.id
    }

    /// Checks that this caller has `scope`.
    ///
    /// # Errors
    /// [`Denied::NoScope`].
    pub fn require(&self, scope: Scope) -> Result<(), Denied> {
        if self.scopes.contain(scope) {
            Ok(())
        } else {
            Err(Denied::NoScope(scope))
        }
    }

    /// Checks that this caller may claim and hold for `user_id`: a JSON Web Token does so for its subject only.
    ///
    /// # Errors
    /// [`Denied::ForeignSubject`].
    pub fn may_claim_for(&self, user_id: &str) -> Result<(), Denied> {
        match &self.id {
            CallerId::Subject(subject) if **subject != *user_id => Err(Denied::ForeignSubject),
            _ => Ok(()),
        }
    }

    /// Label of this caller in events: `token-` and the first 8 hexadecimal digits of the token's SHA-256 digest, or
    /// `sub:` and the subject of its JSON Web Token, without control characters and cut to 255 characters. It is never
    /// the token.
    ///
    /// ```
    /// use honcho_service::auth::{Policy, Tokens};
    ///
    /// let tokens = Tokens::parse("0123456789abcdef:admin").expect("a token and its scope");
    /// let policy = Policy::new(tokens, None);
    /// let caller = policy.identify([&b"Bearer 0123456789abcdef"[..]].into_iter()).expect("an accepted token");
    /// assert_eq!(caller.expect("the service is not open").label(), "token-9f9f5111");
    /// ```
    pub fn label(&self) -> String {
        match &self.id {
            CallerId::Token([a, b, c, d, ..]) => format!("token-{a:02x}{b:02x}{c:02x}{d:02x}"),
            CallerId::Subject(subject) => "sub:"
                .chars()
                .chain(subject.chars().filter(|character| !character.is_control()))
                .take(LONGEST_LABEL)
                .collect(),
        }
    }

    /// The only user that this caller may claim for, if it has the scope `claim` for one user.
    pub fn own_user(&self) -> Option<&str> {
        match &self.id {
            CallerId::Subject(subject) if self.scopes.contain(Scope::Claim) => Some(subject),
            _ => None,
        }
    }
}
