//! Settings of authentication and of web pages' access.

use std::{fs, path::PathBuf};

use clap::Args;

use super::{Secret, layers::InvalidSetting};
use crate::{
    auth::{Jwt, Policy, Tokens},
    http::AllowedOrigins,
};

/// Settings of authentication and of web pages' access.
#[derive(Debug, Args)]
#[command(next_help_heading = "Authentication")]
pub(super) struct AuthSettings {
    /// Accepted tokens, each with its scopes (claim, read, admin), separated by blanks:
    /// token:claim,read. Other users of this machine can see flags: prefer the variable or the file
    #[arg(long, value_name = "TOKENS")]
    api_tokens: Option<Secret>,
    /// File with such tokens, one or more on a line; # begins a comment
    #[arg(long, value_name = "FILE")]
    api_tokens_file: Option<PathBuf>,
    /// Secret of JSON Web Tokens signed with HS256, at least 32 bytes
    #[arg(long, value_name = "SECRET", conflicts_with = "jwt_secret_file")]
    jwt_secret: Option<Secret>,
    /// File with that secret; a line end after it is ignored
    #[arg(long, value_name = "FILE")]
    jwt_secret_file: Option<PathBuf>,
    /// JWKS file with the public keys of JSON Web Tokens signed with RS256 or ES256
    #[arg(long, value_name = "FILE")]
    jwt_jwks_file: Option<PathBuf>,
    /// Required iss of JSON Web Tokens [default: any]
    #[arg(long, value_name = "NAME")]
    jwt_issuer: Option<String>,
    /// Required aud of JSON Web Tokens [default: they must have none]
    #[arg(long, value_name = "NAME")]
    jwt_audience: Option<String>,
    /// Origins of web pages that may use the API, such as https://shop.example, separated by commas; *
    /// for all [default: none]
    #[arg(long, value_name = "ORIGINS", value_delimiter = ',')]
    cors_origins: Vec<String>,
}

impl AuthSettings {
    /// Checks the settings and reads their files.
    pub(super) fn check(self) -> Result<(Policy, AllowedOrigins), InvalidSetting> {
        let origins = AllowedOrigins::parse(&self.cors_origins)
            .map_err(|why| InvalidSetting::setting("cors_origins", why))?;
        let mut tokens = Tokens::default();
        if let Some(text) = &self.api_tokens {
            let invalid = |why: String| InvalidSetting::setting("api_tokens", why);
            tokens = Tokens::parse(text.reveal()).map_err(invalid)?;
            // A template whose secret came out blank must not open the service.
            if tokens.is_empty() {
                return Err(invalid(
                    "holds no token: leave it out if callers need none".to_owned(),
                ));
            }
        }
        if let Some(file) = &self.api_tokens_file {
            let name = "api_tokens_file";
            let text = String::from_utf8(read(name, file)?).map_err(|_| {
                InvalidSetting::setting(name, format!("{} is not UTF-8", file.display()))
            })?;
            let parsed = Tokens::parse(&text).map_err(|why| {
                InvalidSetting::setting(name, format!("{}: {why}", file.display()))
            })?;
            if parsed.is_empty() {
                let why = format!("{} holds no token", file.display());
                return Err(InvalidSetting::setting(name, why));
            }
            tokens = tokens.and(parsed).map_err(|why| {
                InvalidSetting::setting(name, format!("{}: {why} (see API_TOKENS)", file.display()))
            })?;
        }
        Ok((Policy::new(tokens, self.jwt()?), origins))
    }

    fn jwt(self) -> Result<Option<Jwt>, InvalidSetting> {
        let has_keys = self.jwt_secret.is_some()
            || self.jwt_secret_file.is_some()
            || self.jwt_jwks_file.is_some();
        if !has_keys {
            let alone = [
                ("jwt_issuer", &self.jwt_issuer),
                ("jwt_audience", &self.jwt_audience),
            ];
            if let Some((name, _)) = alone.into_iter().find(|(_, value)| value.is_some()) {
                let why =
                    "has no effect without a key: set JWT_SECRET, JWT_SECRET_FILE or JWT_JWKS_FILE";
                return Err(InvalidSetting::setting(name, why));
            }
            return Ok(None);
        }
        let mut jwt = Jwt::new(self.jwt_issuer, self.jwt_audience);
        if let Some(secret) = &self.jwt_secret {
            jwt.add_secret(secret.reveal().as_bytes())
                .map_err(|why| InvalidSetting::setting("jwt_secret", why))?;
        }
        if let Some(file) = &self.jwt_secret_file {
            let name = "jwt_secret_file";
            jwt.add_secret(without_line_end(&read(name, file)?))
                .map_err(|why| {
                    InvalidSetting::setting(name, format!("the secret in {} {why}", file.display()))
                })?;
        }
        if let Some(file) = &self.jwt_jwks_file {
            let name = "jwt_jwks_file";
            jwt.add_jwks(&read(name, file)?).map_err(|why| {
                InvalidSetting::setting(name, format!("{} {why}", file.display()))
            })?;
        }
        Ok(Some(jwt))
    }
}

/// Leaves out the line end that editors write after the last line. All else belongs to the secret.
fn without_line_end(text: &[u8]) -> &[u8] {
    text.strip_suffix(b"\r\n")
        .or_else(|| text.strip_suffix(b"\n"))
        .unwrap_or(text)
}

fn read(setting: &'static str, file: &PathBuf) -> Result<Vec<u8>, InvalidSetting> {
    fs::read(file).map_err(|error| {
        InvalidSetting::setting(setting, format!("cannot read {}: {error}", file.display()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_ends_before_one_line_end() {
        for (file, secret) in [
            ("secret", "secret"),
            ("secret\n", "secret"),
            ("secret\r\n", "secret"),
            ("secret \t", "secret \t"),
            ("secret \n", "secret "),
            ("secret\n\n", "secret\n"),
            ("secret\r", "secret\r"),
            ("\n", ""),
            ("", ""),
        ] {
            let read = without_line_end(file.as_bytes());
            assert_eq!(read, secret.as_bytes(), "{file:?}");
        }
    }
}
