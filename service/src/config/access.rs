//! Who may use the service.

use std::{fs, path::PathBuf};

use clap::Args;

use super::{Secret, layers::Wrong};
use crate::{
    access::{Access, Jwt, Tokens},
    origin::Origins,
};

/// Who may use the service.
#[derive(Debug, Args)]
#[command(next_help_heading = "Access")]
pub(super) struct AccessSettings {
    /// Tokens that are let in, each with its scopes (claim, read, admin), separated by blanks:
    /// token:claim,read. A flag can be seen by other users of this machine: prefer the variable or the
    /// file
    #[arg(long, value_name = "TOKENS")]
    api_tokens: Option<Secret>,
    /// A file of such tokens, one or more a line; # begins a comment
    #[arg(long, value_name = "FILE")]
    api_tokens_file: Option<PathBuf>,
    /// The secret of JSON Web Tokens signed with HS256, 32 bytes or more
    #[arg(long, value_name = "SECRET", conflicts_with = "jwt_secret_file")]
    jwt_secret: Option<Secret>,
    /// A file with that secret; the line end after it does not count
    #[arg(long, value_name = "FILE")]
    jwt_secret_file: Option<PathBuf>,
    /// A JWKS file with the public keys of JSON Web Tokens signed with RS256 or ES256
    #[arg(long, value_name = "FILE")]
    jwt_jwks_file: Option<PathBuf>,
    /// The iss that JSON Web Tokens must have [default: any]
    #[arg(long, value_name = "NAME")]
    jwt_issuer: Option<String>,
    /// The aud that JSON Web Tokens must have [default: they must have none]
    #[arg(long, value_name = "NAME")]
    jwt_audience: Option<String>,
    /// The origins of web pages that may use the API, such as https://shop.example, separated by commas;
    /// * for all [default: none]
    #[arg(long, value_name = "ORIGINS", value_delimiter = ',')]
    cors_origins: Vec<String>,
}

impl AccessSettings {
    pub(super) fn check(self) -> Result<(Access, Origins), Wrong> {
        let origins = Origins::parse(&self.cors_origins)
            .map_err(|why| Wrong::setting("cors_origins", why))?;
        let mut tokens = Tokens::default();
        if let Some(text) = &self.api_tokens {
            let wrong = |why: String| Wrong::setting("api_tokens", why);
            tokens = Tokens::parse(text.reveal()).map_err(wrong)?;
            // A template whose secret came out blank must not open the service.
            if tokens.is_empty() {
                return Err(wrong(
                    "holds no token: leave it out to let everybody in".to_owned(),
                ));
            }
        }
        if let Some(file) = &self.api_tokens_file {
            let name = "api_tokens_file";
            let text = String::from_utf8(read(name, file)?)
                .map_err(|_| Wrong::setting(name, format!("{} is no text", file.display())))?;
            let parsed = Tokens::parse(&text)
                .map_err(|why| Wrong::setting(name, format!("{}: {why}", file.display())))?;
            if parsed.is_empty() {
                let why = format!("{} holds no token", file.display());
                return Err(Wrong::setting(name, why));
            }
            tokens = tokens.and(parsed).map_err(|why| {
                Wrong::setting(name, format!("{}: {why} (see API_TOKENS)", file.display()))
            })?;
        }
        Ok((Access::new(tokens, self.jwt()?), origins))
    }

    fn jwt(self) -> Result<Option<Jwt>, Wrong> {
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
                    "means nothing without a key: set JWT_SECRET, JWT_SECRET_FILE or JWT_JWKS_FILE";
                return Err(Wrong::setting(name, why));
            }
            return Ok(None);
        }
        let mut jwt = Jwt::new(self.jwt_issuer, self.jwt_audience);
        if let Some(secret) = &self.jwt_secret {
            jwt.add_secret(secret.reveal().as_bytes())
                .map_err(|why| Wrong::setting("jwt_secret", why))?;
        }
        if let Some(file) = &self.jwt_secret_file {
            let name = "jwt_secret_file";
            jwt.add_secret(read(name, file)?.trim_ascii_end())
                .map_err(|why| {
                    Wrong::setting(name, format!("the secret in {} {why}", file.display()))
                })?;
        }
        if let Some(file) = &self.jwt_jwks_file {
            let name = "jwt_jwks_file";
            jwt.add_jwks(&read(name, file)?)
                .map_err(|why| Wrong::setting(name, format!("{} {why}", file.display())))?;
        }
        Ok(Some(jwt))
    }
}

fn read(setting: &'static str, file: &PathBuf) -> Result<Vec<u8>, Wrong> {
    fs::read(file).map_err(|error| {
        Wrong::setting(setting, format!("cannot read {}: {error}", file.display()))
    })
}
