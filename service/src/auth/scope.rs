//! Scopes: the permissions of a token.

use std::fmt;

/// A permission of a token.
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
    /// All scopes.
    pub const ALL: [Self; 3] = [Self::Claim, Self::Read, Self::Admin];

    /// Name in tokens.
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
    /// Returns true if the set contains `scope`.
    pub fn contain(self, scope: Scope) -> bool {
        self.0 & (1 << scope as u8) != 0
    }

    /// Adds the scope of this name; returns false if there is none.
    pub(super) fn add(&mut self, name: &str) -> bool {
        let scope = Scope::ALL.into_iter().find(|scope| scope.name() == name);
        if let Some(scope) = scope {
            self.0 |= 1 << scope as u8;
        }
        scope.is_some()
    }
}
