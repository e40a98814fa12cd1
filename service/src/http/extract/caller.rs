//! The caller of a request, checked for the permission that its route needs, before the body is read.

use axum::{
    extract::{FromRef, FromRequestParts},
    http::{HeaderValue, header::AUTHORIZATION, request::Parts},
};

use crate::{
    auth::{Caller, Denied, Policy, Scope},
    error::Error,
};

/// A caller with the scope `claim`; none if the service is open.
#[derive(Debug)]
pub(crate) struct Claimer(Option<Caller>);

impl Claimer {
    /// Checks that this caller may claim and hold for `user_id`.
    ///
    /// # Errors
    /// [`Denied::ForeignSubject`].
    pub fn claims_for(&self, user_id: &str) -> Result<(), Denied> {
        self.0
            .as_ref()
            .map_or(Ok(()), |caller| caller.may_claim_for(user_id))
    }

    /// Label of the caller in events; none if the service is open.
    pub fn label(&self) -> Option<String> {
        self.0.as_ref().map(Caller::label)
    }
}

impl<S: Sync> FromRequestParts<S> for Claimer
where
    Policy: FromRef<S>,
{
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Error> {
        Ok(Self(with_scope(parts, state, Scope::Claim)?))
    }
}

/// A caller with the scope `read`.
#[derive(Debug)]
pub(crate) struct Reader;

impl<S: Sync> FromRequestParts<S> for Reader
where
    Policy: FromRef<S>,
{
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Error> {
        with_scope(parts, state, Scope::Read)?;
        Ok(Self)
    }
}

/// A caller with the scope `read`, for an answer that lasts: its token may expire or be withdrawn meanwhile.
#[derive(Debug)]
pub(crate) struct LastingReader {
    policy: Policy,
    authorization: Vec<HeaderValue>,
}

impl LastingReader {
    /// Returns true if the token of the request would be accepted now.
    pub fn is_accepted(&self) -> bool {
        let values = self.authorization.iter().map(HeaderValue::as_bytes);
        let caller = self.policy.identify(values);
        caller.is_ok_and(|caller| caller.is_none_or(|caller| caller.require(Scope::Read).is_ok()))
    }
}

impl<S: Sync> FromRequestParts<S> for LastingReader
where
    Policy: FromRef<S>,
{
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Error> {
        with_scope(parts, state, Scope::Read)?;
        let authorization = parts.headers.get_all(AUTHORIZATION);
        Ok(Self {
            policy: Policy::from_ref(state),
            authorization: authorization.iter().cloned().collect(),
        })
    }
}

/// A caller that may read claims and holds: with the scope `read` those of all users, with `claim` those of the subject
/// of its own JSON Web Token.
#[derive(Debug)]
pub(crate) struct ClaimReader(Option<Caller>);

impl ClaimReader {
    /// Checks that this caller may see the claims and holds of this user.
    ///
    /// # Errors
    /// [`Denied::NoScope`] with the scope that would allow it.
    pub fn sees(&self, user_id: &str) -> Result<(), Denied> {
        if self.own_user() == Some(user_id) {
            Ok(())
        } else {
            self.sees_all()
        }
    }

    /// Checks that this caller may see the claims and holds of all users.
    ///
    /// # Errors
    /// [`Denied::NoScope`] with the scope that would allow it.
    pub fn sees_all(&self) -> Result<(), Denied> {
        self.0
            .as_ref()
            .map_or(Ok(()), |caller| caller.require(Scope::Read))
    }

    fn own_user(&self) -> Option<&str> {
        self.0.as_ref().and_then(Caller::own_user)
    }
}

impl<S: Sync> FromRequestParts<S> for ClaimReader
where
    Policy: FromRef<S>,
{
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Error> {
        let reader = Self(identified(parts, state)?);
        if reader.own_user().is_none() {
            reader.sees_all()?;
        }
        Ok(reader)
    }
}

/// A caller with the scope `admin`; none if the service is open.
#[derive(Debug)]
pub(crate) struct Admin(Option<Caller>);

impl Admin {
    /// Label of the caller in events; empty if the service is open.
    pub fn label(&self) -> String {
        self.0.as_ref().map(Caller::label).unwrap_or_default()
    }
}

impl<S: Sync> FromRequestParts<S> for Admin
where
    Policy: FromRef<S>,
{
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Error> {
        Ok(Self(with_scope(parts, state, Scope::Admin)?))
    }
}

/// Takes the caller, and checks its scope.
fn with_scope<S>(parts: &mut Parts, state: &S, scope: Scope) -> Result<Option<Caller>, Denied>
where
    Policy: FromRef<S>,
{
    let caller = identified(parts, state)?;
    if let Some(caller) = &caller {
        caller.require(scope)?;
    }
    Ok(caller)
}

/// Takes the caller that admission has authenticated; none if the service is open.
fn identified<S>(parts: &mut Parts, state: &S) -> Result<Option<Caller>, Denied>
where
    Policy: FromRef<S>,
{
    if Policy::from_ref(state).is_open() {
        return Ok(None);
    }
    // Admission refuses requests without a caller; if one got past it, it would end here.
    let caller = parts.extensions.remove::<Caller>();
    caller.map(Some).ok_or(Denied::NoToken)
}
