//! State of the extension in the database: if it has the functions of this version.
//!
//! A new service may meet the SQL of the release before, until `alter extension honcho update` has run there. Then the
//! functions that both have work, and calls of newer ones fail at once.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::Error;

/// State of the extension, as the last check or call found it.
#[derive(Debug, Default)]
pub(super) struct Extension {
    is_outdated: AtomicBool,
}

impl Extension {
    /// Records if newer functions are missing.
    pub fn set_outdated(&self, is_outdated: bool) {
        self.is_outdated.store(is_outdated, Ordering::Relaxed);
    }

    /// Returns true if newer functions are missing, as far as is known.
    pub fn is_outdated(&self) -> bool {
        self.is_outdated.load(Ordering::Relaxed)
    }

    /// Carries out a call of a function that this version has added.
    ///
    /// # Errors
    /// [`Error::ExtensionOutdated`] if the function is missing, without a call if that is known; those of the call.
    pub async fn newer<T>(&self, call: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        if self.is_outdated() {
            return Err(Error::ExtensionOutdated);
        }
        match call.await {
            // Until the next check, which finds out if it is the search path that is wrong.
            Err(Error::FunctionNotFound(_)) => {
                self.set_outdated(true);
                Err(Error::ExtensionOutdated)
            }
            answer => answer,
        }
    }
}
