//! libpq's password file: lines of `host:port:database:user:password`; `*` matches any value.

use std::fs;

use tokio_postgres::Config;

use super::conninfo::{ConninfoError, Parameters};

/// Text of the file; empty if no file is named.
pub(crate) struct PasswordFile(String);

impl PasswordFile {
    /// Reads the file that `passfile` or `PGPASSFILE` names.
    ///
    /// # Errors
    /// The file cannot be read.
    pub(crate) fn read(parameters: &Parameters) -> Result<Self, ConninfoError> {
        let Some(path) = parameters.get("passfile") else {
            return Ok(Self(String::new()));
        };
        fs::read_to_string(path)
            .map(Self)
            .map_err(|error| parameters.fault("passfile", format!("cannot be read: {error}")))
    }

    /// Password of the first line that matches.
    pub(crate) fn look_up(&self, host: &str, port: u16, config: &Config) -> Option<String> {
        let port = port.to_string();
        let user = config.get_user().unwrap_or_default();
        let dbname = config.get_dbname().unwrap_or(user);
        let wanted = [host, &port, dbname, user];
        let lines = self.0.lines().filter(|line| !line.starts_with('#'));
        lines.map(fields).find_map(|mut fields| {
            let fits = fields.len() == 5
                && fields.iter().zip(wanted).all(|(field, wanted)| {
                    field == "*"
                        || field == wanted
                        // Like libpq: a socket of this machine.
                        || field == "localhost" && wanted.starts_with('/')
                });
            fits.then(|| fields.swap_remove(4))
        })
    }
}

/// Splits a line into its fields. A backslash takes the next character literally.
fn fields(line: &str) -> Vec<String> {
    let mut fields = vec![String::new()];
    let mut characters = line.chars();
    while let Some(character) = characters.next() {
        match character {
            // The password is everything after the fourth colon.
            ':' if fields.len() < 5 => fields.push(String::new()),
            '\\' => push(&mut fields, characters.next().unwrap_or('\\')),
            character => push(&mut fields, character),
        }
    }
    fields
}

fn push(fields: &mut [String], character: char) {
    if let Some(field) = fields.last_mut() {
        field.push(character);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_that_fits_has_the_password() {
        let file = PasswordFile(
            "# host:port:dbname:user:password\n\
             h:5432:d:u:first\n\
             h:5432:*:u:sec:ond\n\
             h:*:*:*:th\\:ird\\\\\n\
             /run/a:*:*:*:socket\n\
             localhost:5432:d:u:local\n\
             too:few:fields\n\
             2001\\:db8\\:\\:1:*:*:*:sixth"
                .to_owned(),
        );
        let mut config = Config::new();
        config.user("u").dbname("d");
        for (host, port, password) in [
            ("h", 5432, Some("first")),
            ("h", 5433, Some(r"th:ird\")),
            ("/var/run/postgresql", 5432, Some("local")),
            ("/run/a", 5432, Some("socket")),
            ("2001:db8::1", 1, Some("sixth")),
            ("elsewhere", 5432, None),
        ] {
            let found = file.look_up(host, port, &config);
            assert_eq!(found.as_deref(), password, "{host}:{port}");
        }
        config.dbname("another");
        assert_eq!(file.look_up("h", 5432, &config).as_deref(), Some("sec:ond"));
    }
}
