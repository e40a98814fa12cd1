//! Connection strings and `PG…` variables, with libpq's syntax and meaning (its documentation: "Database
//! Connection Control Functions").

use std::{collections::HashMap, ffi::OsString};

use percent_encoding::percent_decode_str;

/// The supported parameters, each with its variable, if it has one.
const KNOWN: &[(&str, Option<&str>)] = &[
    ("host", Some("PGHOST")),
    ("hostaddr", Some("PGHOSTADDR")),
    ("port", Some("PGPORT")),
    ("dbname", Some("PGDATABASE")),
    ("user", Some("PGUSER")),
    ("password", Some("PGPASSWORD")),
    ("passfile", Some("PGPASSFILE")),
    ("options", Some("PGOPTIONS")),
    ("application_name", Some("PGAPPNAME")),
    ("connect_timeout", Some("PGCONNECT_TIMEOUT")),
    ("target_session_attrs", Some("PGTARGETSESSIONATTRS")),
    ("channel_binding", Some("PGCHANNELBINDING")),
    ("sslmode", Some("PGSSLMODE")),
    ("sslrootcert", Some("PGSSLROOTCERT")),
    ("sslcert", Some("PGSSLCERT")),
    ("sslkey", Some("PGSSLKEY")),
    ("tcp_user_timeout", None),
    ("keepalives", None),
    ("keepalives_idle", None),
    ("keepalives_interval", None),
    ("keepalives_count", None),
];

/// Error in a connection string or in a variable. It never repeats a value, which may be a password.
#[derive(Debug)]
pub struct ConninfoError {
    /// Name of the variable; none for the connection string.
    pub variable: Option<&'static str>,
    /// Description of the error and of what is allowed.
    pub why: String,
}

impl ConninfoError {
    /// Error in the connection string.
    pub(crate) fn in_string(why: impl Into<String>) -> Self {
        Self {
            variable: None,
            why: why.into(),
        }
    }
}

/// A URL after its scheme; none if the connection string is no URL.
fn without_scheme(string: &str) -> Option<&str> {
    ["postgresql://", "postgres://"]
        .iter()
        .find_map(|scheme| string.strip_prefix(scheme))
}

/// The parameters that are set and not empty.
#[derive(Default)]
pub struct Parameters(HashMap<&'static str, (String, Option<&'static str>)>);

impl Parameters {
    /// Parses a connection string, a URL or `keyword=value …`, and adds parameters that it leaves out from the
    /// variables.
    ///
    /// # Errors
    /// The string or a variable is malformed.
    pub fn new(
        string: &str,
        variable: &dyn Fn(&str) -> Option<OsString>,
    ) -> Result<Self, ConninfoError> {
        let mut parameters = Self::default();
        match without_scheme(string) {
            Some(rest) => parameters.add_url(rest)?,
            None => parameters.add_keywords(string)?,
        }
        for &(name, variable_name) in KNOWN {
            let Some(variable_name) = variable_name else {
                continue;
            };
            if parameters.0.contains_key(name) {
                continue;
            }
            let Some(value) = variable(variable_name).filter(|value| !value.is_empty()) else {
                continue;
            };
            let value = value.into_string().map_err(|_| ConninfoError {
                variable: Some(variable_name),
                why: "must be valid UTF-8".to_owned(),
            })?;
            parameters.0.insert(name, (value, Some(variable_name)));
        }
        Ok(parameters)
    }

    /// Returns true if a connection string is a URL, which contains no blanks.
    pub fn is_url(string: &str) -> bool {
        without_scheme(string).is_some()
    }

    /// Value of a parameter.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(|(value, _)| value.as_str())
    }

    /// Values of a parameter that has one for each host.
    pub fn list(&self, name: &str) -> Vec<&str> {
        self.get(name)
            .map_or_else(Vec::new, |list| list.split(',').collect())
    }

    /// Value of a parameter as `parse` reads it; `allowed` describes the values that it accepts.
    ///
    /// # Errors
    /// `parse` does not accept the value.
    pub fn parsed<T>(
        &self,
        name: &'static str,
        allowed: &str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Result<Option<T>, ConninfoError> {
        self.get(name)
            .map(|value| parse(value).ok_or_else(|| self.fault(name, format!("must be {allowed}"))))
            .transpose()
    }

    /// Error in this parameter.
    pub fn fault(&self, name: &str, why: impl Into<String>) -> ConninfoError {
        let why = why.into();
        match self.0.get(name) {
            Some((_, Some(variable))) => ConninfoError {
                variable: Some(variable),
                why,
            },
            _ => ConninfoError::in_string(format!("{name} {why}")),
        }
    }

    fn add(&mut self, name: &str, value: String) -> Result<(), ConninfoError> {
        // A stray part of a password can look like a name, so an odd one is not repeated.
        let known = KNOWN.iter().find(|(known, _)| *known == name);
        let Some(&(name, _)) = known else {
            let names: Vec<_> = KNOWN.iter().map(|(known, _)| *known).collect();
            return Err(ConninfoError::in_string(format!(
                "has a parameter that is not one of {}",
                names.join(", ")
            )));
        };
        if value.is_empty() {
            self.0.remove(name);
        } else {
            self.0.insert(name, (value, None));
        }
        Ok(())
    }

    /// Adds the parameters of `user:password@host:port,host:port/dbname?name=value&…`.
    fn add_url(&mut self, rest: &str) -> Result<(), ConninfoError> {
        // Credentials end at an @ before the first slash.
        let authority_end = rest.find('/').unwrap_or(rest.len());
        let rest = match rest[..authority_end].find('@') {
            Some(at) => {
                let (user, password) = split(&rest[..at], ':');
                self.add("user", decoded(user)?)?;
                self.add("password", decoded(password)?)?;
                &rest[at + 1..]
            }
            None => rest,
        };
        let (before_query, query) = split(rest, '?');
        let (authority, dbname) = split(before_query, '/');
        let mut hosts = Vec::new();
        let mut ports = Vec::new();
        for server in authority.split(',') {
            let (host, port) = match server
                .strip_prefix('[')
                .and_then(|rest| rest.split_once(']'))
            {
                Some((host, port)) => (host, port.trim_start_matches(':')),
                None => split(server, ':'),
            };
            hosts.push(decoded(host)?);
            ports.push(decoded(port)?);
        }
        if hosts.iter().any(|host| !host.is_empty()) {
            self.add("host", hosts.join(","))?;
        }
        if ports.iter().any(|port| !port.is_empty()) {
            self.add("port", ports.join(","))?;
        }
        self.add("dbname", decoded(dbname)?)?;
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair
                .split_once('=')
                .ok_or_else(|| ConninfoError::in_string("has a parameter without ="))?;
            self.add(&decoded(name)?, decoded(value)?)?;
        }
        Ok(())
    }

    /// Adds the parameters of `name=value name='a quoted value'`.
    fn add_keywords(&mut self, string: &str) -> Result<(), ConninfoError> {
        let mut rest = string.trim_start();
        while !rest.is_empty() {
            let (name, after) = rest.split_once('=').ok_or_else(|| {
                ConninfoError::in_string(
                    "must be a URL, postgresql://…, or keywords, host=… dbname=…",
                )
            })?;
            let (value, after) = value(after.trim_start())?;
            self.add(name.trim_end(), value)?;
            rest = after.trim_start();
        }
        Ok(())
    }
}

/// Splits a text at the first `separator`; the second part is empty if there is none.
fn split(text: &str, separator: char) -> (&str, &str) {
    text.split_once(separator).unwrap_or((text, ""))
}

fn decoded(text: &str) -> Result<String, ConninfoError> {
    percent_decode_str(text)
        .decode_utf8()
        .map(Into::into)
        .map_err(|_| ConninfoError::in_string("must be valid UTF-8 behind its percent signs"))
}

/// Parses a keyword's value, and returns it with the rest of the text. A backslash takes the next character literally.
fn value(text: &str) -> Result<(String, &str), ConninfoError> {
    let quoted = text.starts_with('\'');
    let mut value = String::new();
    let mut characters = text.char_indices().skip(usize::from(quoted));
    while let Some((position, character)) = characters.next() {
        match character {
            '\\' => value.extend(characters.next().map(|(_, character)| character)),
            '\'' if quoted => return Ok((value, &text[position + 1..])),
            _ if !quoted && character.is_whitespace() => return Ok((value, &text[position..])),
            _ => value.push(character),
        }
    }
    if quoted {
        return Err(ConninfoError::in_string(
            "has a quotation mark without its pair",
        ));
    }
    Ok((value, ""))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn parameters(string: &str, variables: &[(&str, &str)]) -> Parameters {
        let variable = |name: &str| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| OsString::from(value))
        };
        Parameters::new(string, &variable)
            .map_err(|error| error.why)
            .unwrap()
    }

    fn shown(parameters: &Parameters) -> String {
        let names = KNOWN.iter().map(|(name, _)| *name);
        let given = names.filter_map(|name| Some(format!("{name}={}", parameters.get(name)?)));
        given.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn connection_strings_are_read_like_libpq() {
        for (string, expected) in [
            ("postgresql://", ""),
            ("postgresql://localhost", "host=localhost"),
            ("postgres://localhost:5433", "host=localhost port=5433"),
            ("postgresql://localhost/mydb", "host=localhost dbname=mydb"),
            ("postgresql://user@localhost", "host=localhost user=user"),
            (
                "postgresql://user:secret@localhost",
                "host=localhost user=user password=secret",
            ),
            (
                "postgresql://other@localhost/otherdb?connect_timeout=10&application_name=myapp",
                "host=localhost dbname=otherdb user=other application_name=myapp connect_timeout=10",
            ),
            (
                "postgresql://host1:123,host2:456/somedb?target_session_attrs=any",
                "host=host1,host2 port=123,456 dbname=somedb target_session_attrs=any",
            ),
            ("postgresql://h1,h2:456/", "host=h1,h2 port=,456"),
            (
                "postgresql:///mydb?host=localhost&port=5433",
                "host=localhost port=5433 dbname=mydb",
            ),
            (
                "postgresql://[2001:db8::1234]:5433/database",
                "host=2001:db8::1234 port=5433 dbname=database",
            ),
            (
                "postgresql://%2Fvar%2Flib%2Fpostgresql/dbname",
                "host=/var/lib/postgresql dbname=dbname",
            ),
            (
                "postgresql://u:p%40ss%2F%3F@h/d?options=-c%20lock_timeout%3D1s",
                "host=h dbname=d user=u password=p@ss/? options=-c lock_timeout=1s",
            ),
            (
                "postgresql://u:p?w@h/d",
                "host=h dbname=d user=u password=p?w",
            ),
            ("", ""),
            ("host=localhost port=5432", "host=localhost port=5432"),
            (
                r"host = h1,h2 password = 'it\'s a \\ secret' user=''",
                r"host=h1,h2 password=it's a \ secret",
            ),
            (r"host=h password=a\ b", "host=h password=a b"),
            ("dbname=one dbname=two", "dbname=two"),
        ] {
            assert_eq!(shown(&parameters(string, &[])), expected, "{string}");
        }
    }

    #[test]
    fn variables_add_what_the_string_leaves_out() {
        let variables = [
            ("PGHOST", "elsewhere"),
            ("PGUSER", "other"),
            ("PGPORT", "5433"),
            ("PGSSLMODE", ""),
            ("PGSERVICE", "unknown here"),
        ];
        let found = parameters("postgresql://me@here/d", &variables);
        assert_eq!(shown(&found), "host=here port=5433 dbname=d user=me");
        assert_eq!(found.fault("port", "is odd").variable, Some("PGPORT"));
        let fault = found.fault("user", "is odd");
        assert_eq!((fault.variable, &*fault.why), (None, "user is odd"));
    }
}
