//! The service's own tokens: random texts that the operator hands out.

use ring::digest::{SHA256, digest};
use subtle::ConstantTimeEq;

use super::{Caller, CallerId, Scope, Scopes};

/// The shortest token, in characters: shorter ones could be guessed.
const SHORTEST: usize = 16;

/// The accepted tokens, as their digests.
#[derive(Debug, Default)]
pub struct Tokens(Vec<(Digest, Scopes)>);

pub(super) type Digest = [u8; 32];

impl Tokens {
    /// Reads entries `token:scope,scope…`, separated by blanks or line ends; what follows a `#` at the
    /// beginning of an entry is left out, to the end of the line.
    ///
    /// # Errors
    /// The number of the wrong entry and the reason, without its text, which may be a token.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut tokens = Self::default();
        for (line, content) in text.lines().enumerate() {
            for (place, entry) in content.split_whitespace().enumerate() {
                if entry.starts_with('#') {
                    break;
                }
                let named =
                    |reason: String| format!("entry {} on line {}: {reason}", place + 1, line + 1);
                let (token, scopes) = self::entry(entry).map_err(named)?;
                tokens.add(token, scopes).map_err(named)?;
            }
        }
        Ok(tokens)
    }

    /// Adds a token.
    ///
    /// # Errors
    /// The token has an entry already: two entries may contradict each other.
    fn add(&mut self, token: Digest, scopes: Scopes) -> Result<(), String> {
        if self.0.iter().any(|(known, _)| *known == token) {
            return Err(
                "this token has an entry already: give it all its scopes in one".to_owned(),
            );
        }
        self.0.push((token, scopes));
        Ok(())
    }

    /// Returns true if there are no tokens.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Joins two sets of tokens.
    ///
    /// # Errors
    /// A token is in both.
    pub fn and(mut self, other: Self) -> Result<Self, String> {
        for (place, (token, scopes)) in other.0.into_iter().enumerate() {
            self.add(token, scopes)
                .map_err(|reason| format!("entry {}: {reason}", place + 1))?;
        }
        Ok(self)
    }

    /// Counts the differences from `old`, as a text.
    pub(super) fn changes_since(&self, old: &Self) -> String {
        let kept = self.0.iter().filter(|entry| old.0.contains(entry)).count();
        let (new, gone) = (self.0.len() - kept, old.0.len() - kept);
        format!("{new} new or changed, {gone} gone or changed, {kept} as before")
    }

    /// Finds the caller of this token. All digests are compared, each in constant time, so that the time taken
    /// reveals nothing about the accepted tokens.
    pub(super) fn find(&self, token: &[u8]) -> Option<Caller> {
        let digest = sha256(token);
        let mut found = None;
        for (known, scopes) in &self.0 {
            if bool::from(known.ct_eq(&digest)) {
                let beginning = known.first_chunk().copied().unwrap_or_default();
                found = Some(Caller {
                    id: CallerId::Token(beginning),
                    scopes: *scopes,
                });
            }
        }
        found
    }
}

fn entry(entry: &str) -> Result<(Digest, Scopes), String> {
    let (token, names) = entry
        .split_once(':')
        .ok_or("must be a token, a colon, and its scopes")?;
    if token.len() < SHORTEST {
        return Err(format!(
            "the token must have at least {SHORTEST} characters"
        ));
    }
    if !token.bytes().all(is_token_byte) {
        return Err("a token holds only letters, digits and - . _ ~ + / =".to_owned());
    }
    let mut scopes = Scopes::default();
    for name in names.split(',') {
        if !scopes.add(name) {
            let known = Scope::ALL.map(Scope::name).join(", ");
            return Err(format!("after the colon stand scopes: {known}"));
        }
    }
    Ok((sha256(token.as_bytes()), scopes))
}

/// Returns true if RFC 6750 allows this byte in a bearer token.
fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~+/=".contains(&byte)
}

pub(super) fn sha256(text: &[u8]) -> Digest {
    let mut array = Digest::default();
    array.copy_from_slice(digest(&SHA256, text).as_ref());
    array
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_read() {
        let text = "# ours\n  0123456789abcdef:claim\n\nfedcba9876543210==:read,admin x-y.z_~+/0123456:read # new\n";
        let tokens = Tokens::parse(text).unwrap();
        assert_eq!(tokens.0.len(), 3);
        let found = |token: &str| {
            tokens
                .find(token.as_bytes())
                .map(|caller| Scope::ALL.map(|scope| caller.scopes.contain(scope)))
        };
        assert_eq!(found("0123456789abcdef"), Some([true, false, false]));
        assert_eq!(found("fedcba9876543210=="), Some([false, true, true]));
        assert_eq!(found("x-y.z_~+/0123456"), Some([false, true, false]));
        for other in [
            "",
            "0123456789abcdeF",
            "0123456789abcde",
            "0123456789abcdef0",
            "#",
        ] {
            assert_eq!(found(other), None, "{other}");
        }
    }

    #[test]
    fn changes_are_counted() {
        let old = Tokens::parse("0123456789abcdef:claim fedcba9876543210:read").unwrap();
        let new = Tokens::parse("0123456789abcdef:claim,read fedcba9876543210:read").unwrap();
        assert_eq!(
            new.changes_since(&old),
            "1 new or changed, 1 gone or changed, 1 as before"
        );
        assert!(old.and(new).unwrap_err().contains("has an entry already"));
    }

    #[test]
    fn wrong_entries_are_named_and_not_repeated() {
        for (text, reason) in [
            (
                "0123456789abcdef",
                "entry 1 on line 1: must be a token, a colon",
            ),
            (
                "short:claim",
                "entry 1 on line 1: the token must have at least 16",
            ),
            (
                "0123456789abcdef:claim\n0123456789abcdef: ",
                "entry 1 on line 2: after the colon",
            ),
            (
                "0123456789abcdef:claim x:y",
                "entry 2 on line 1: the token must",
            ),
            ("0123456789abcdef:claim,write", "claim, read, admin"),
            ("claim:0123456789abcdef", "the token must have at least 16"),
            ("0123456789abcdeé:claim", "letters, digits"),
            (
                "0123456789abcdef:claim\n0123456789abcdef:read",
                "entry 1 on line 2: this token has an entry already",
            ),
        ] {
            let said = Tokens::parse(text).unwrap_err();
            assert!(said.contains(reason), "{text}: {said}");
            assert!(!said.contains("0123456789"), "{text}: {said}");
        }
    }
}
