//! Our own tokens: random texts that the operator hands out.

use ring::digest::{SHA256, digest};
use subtle::ConstantTimeEq;

use super::{Caller, Identity, Scope, Scopes};

/// Shorter ones could be guessed.
const SHORTEST: usize = 16;

/// The tokens that are let in, as their digests.
#[derive(Debug, Default)]
pub struct Tokens(Vec<(Digest, Scopes)>);

type Digest = [u8; 32];

impl Tokens {
    /// Reads entries `token:scope,scope…`, separated by blanks or line ends; what follows a `#` at the
    /// beginning of an entry is left out, to the end of the line.
    ///
    /// # Errors
    /// Which entry is wrong, and why. Never what it says, for that may be a token.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut tokens = Vec::new();
        for (line, content) in text.lines().enumerate() {
            for (place, entry) in content.split_whitespace().enumerate() {
                if entry.starts_with('#') {
                    break;
                }
                let token = self::entry(entry).map_err(|reason| {
                    format!("entry {} on line {}: {reason}", place + 1, line + 1)
                })?;
                tokens.push(token);
            }
        }
        Ok(Self(tokens))
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The tokens of both.
    pub fn and(mut self, other: Self) -> Self {
        self.0.extend(other.0);
        self
    }

    /// Whose token this is. How long it takes tells nothing about the known ones: digests are compared
    /// in constant time, and all of them.
    pub(super) fn find(&self, token: &[u8]) -> Option<Caller> {
        let digest = sha256(token);
        let mut found = None;
        for (place, (known, scopes)) in self.0.iter().enumerate() {
            if bool::from(known.ct_eq(&digest)) {
                found = Some(Caller {
                    identity: Identity::Token(place),
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

/// What RFC 6750 lets a bearer token consist of.
fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~+/=".contains(&byte)
}

fn sha256(text: &[u8]) -> Digest {
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
                .map(|caller| Scope::ALL.map(|scope| caller.scopes.holds(scope)))
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
        ] {
            let said = Tokens::parse(text).unwrap_err();
            assert!(said.contains(reason), "{text}: {said}");
            assert!(!said.contains("0123456789"), "{text}: {said}");
        }
    }
}
