//! Flags over environment over file: whatever no flag says is made one, so that every value, from
//! wherever it comes, passes the same parser and is told the same if it is wrong.

use std::{
    collections::HashMap,
    error::Error as _,
    ffi::OsString,
    fmt, fs,
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{
    Arg, ArgMatches, Command, Parser,
    error::{ContextKind, ContextValue, ErrorKind},
    parser::ValueSource,
    value_parser,
};
use toml::{Table, Value};

/// The argument that names the file, and its variable.
const FILE: (&str, &str) = ("config", "CONFIG_FILE");

/// Why the program ends before it begins: it was asked for a text, or told something wrong.
#[derive(Debug)]
pub enum Stop {
    /// A text that was asked for.
    Answer(clap::Error),
    /// What is wrong and what would be right. Never repeats a secret.
    Wrong(String),
}

impl Stop {
    /// Tells the user, and returns how to exit.
    pub fn tell(&self) -> ExitCode {
        // Where neither output can be written to, nobody is there to hear it.
        let _ = match self {
            Self::Answer(text) => text.print(),
            Self::Wrong(text) => writeln!(io::stderr(), "honcho-service: {text}"),
        };
        ExitCode::from(match self {
            Self::Answer(_) => 0,
            Self::Wrong(_) => 2,
        })
    }
}

/// A setting whose value cannot be.
#[derive(Debug)]
pub(super) struct Wrong {
    subject: Subject,
    why: String,
}

#[derive(Debug)]
enum Subject {
    Setting(&'static str),
    Variable(&'static str),
}

impl Wrong {
    /// The setting of this name. `why` must not contain its value if that is a secret.
    pub(super) fn setting(name: &'static str, why: impl Into<String>) -> Self {
        Self {
            subject: Subject::Setting(name),
            why: why.into(),
        }
    }

    /// A variable of the environment that is not a setting of ours.
    pub(super) fn variable(name: &'static str, why: impl Into<String>) -> Self {
        Self {
            subject: Subject::Variable(name),
            why: why.into(),
        }
    }
}

/// Where each setting comes from that was set.
#[derive(Debug, Default)]
pub(super) struct Origins(HashMap<String, Origin>);

#[derive(Debug)]
enum Origin {
    Flag,
    Variable,
    File(PathBuf),
}

impl Origins {
    /// What to tell a user about a wrong value: under the name by which it was set.
    pub(super) fn explain(&self, wrong: Wrong) -> Stop {
        let Wrong { subject, why } = wrong;
        Stop::Wrong(match subject {
            Subject::Setting(name) => format!("{}: {why}", self.name(name)),
            Subject::Variable(name) => format!("{name}: {why}"),
        })
    }

    fn name(&self, setting: &str) -> String {
        match self.0.get(setting) {
            Some(Origin::Flag) => format!("--{}", setting.replace('_', "-")),
            Some(Origin::File(file)) => format!("{}: {setting}", file.display()),
            Some(Origin::Variable) | None => variable_of(setting),
        }
    }
}

/// Parses the command line, completed by the environment and the file.
pub(super) fn load<S: Parser>(
    mut arguments: Vec<OsString>,
    variable: &dyn Fn(&str) -> Option<OsString>,
) -> Result<(S, Origins), Stop> {
    let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
    let command = S::command();
    let flags = flags(&command, &arguments)?;
    let mut file = match flags.get_one::<OsString>(FILE.0) {
        Some(path) => File::read(path.into(), "--config")?,
        None => match variable(FILE.1) {
            Some(path) => File::read(path.into(), FILE.1)?,
            None => File::default(),
        },
    };
    let mut origins = Origins::default();
    for setting in settings(&command) {
        let id = setting.get_id().as_str();
        let in_file = file.table.remove(id);
        let (values, origin) = if flags.value_source(id) == Some(ValueSource::CommandLine) {
            (Vec::new(), Origin::Flag)
        } else if let Some(value) = variable(&variable_of(id)) {
            (vec![value], Origin::Variable)
        } else if let Some(value) = in_file {
            (file.texts(id, value)?, Origin::File(file.path.clone()))
        } else {
            continue;
        };
        for value in values {
            let mut flag = OsString::from(format!("--{}=", setting.get_long().unwrap_or(id)));
            flag.push(value);
            arguments.push(flag);
        }
        origins.0.insert(id.to_owned(), origin);
    }
    if let Some(key) = file.table.keys().next() {
        return Err(file.wrong(format_args!(
            "there is no setting {key:?}; --help lists them"
        )));
    }
    match S::try_parse_from(arguments) {
        Ok(settings) => Ok((settings, origins)),
        Err(error) => Err(refused(&command, &origins, error)),
    }
}

fn variable_of(setting: &str) -> String {
    setting.to_uppercase()
}

/// All that can be set in the environment and the file.
fn settings(command: &Command) -> impl Iterator<Item = &Arg> {
    command
        .get_arguments()
        .filter(|argument| argument.get_id() != FILE.0 && argument.get_action().takes_values())
}

/// What the command line says, its values not looked at yet.
fn flags(command: &Command, arguments: &[OsString]) -> Result<ArgMatches, Stop> {
    command
        .clone()
        .mut_args(|argument| {
            if argument.get_action().takes_values() {
                argument.value_parser(value_parser!(OsString))
            } else {
                argument
            }
        })
        .try_get_matches_from(arguments)
        .map_err(|error| match error.kind() {
            ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Stop::Answer(error),
            ErrorKind::UnknownArgument => Stop::Wrong(unknown(&error)),
            _ => Stop::Wrong(first_line(&error)),
        })
}

/// Names a flag that there is not. What is no flag is not repeated: it may be a connection string.
fn unknown(error: &clap::Error) -> String {
    let name = shown(error, ContextKind::InvalidArg);
    if !name.starts_with('-') {
        return "takes only flags; --help lists them".to_owned();
    }
    match shown(error, ContextKind::SuggestedArg) {
        similar if !similar.is_empty() => {
            format!("there is no flag {name}; did you mean {similar}?")
        }
        _ => format!("there is no flag {name}; --help lists them"),
    }
}

/// What to tell about a value that its parser does not take.
fn refused(command: &Command, origins: &Origins, error: clap::Error) -> Stop {
    let flag = shown(&error, ContextKind::InvalidArg);
    let setting = settings(command).find(|setting| {
        let long = setting.get_long().unwrap_or_default();
        flag.strip_prefix("--")
            .and_then(|rest| rest.split([' ', '=']).next())
            .is_some_and(|name| name == long)
    });
    let Some(setting) = setting else {
        return Stop::Wrong(first_line(&error));
    };
    let name = origins.name(setting.get_id().as_str());
    let value = shown(&error, ContextKind::InvalidValue);
    let why = match (error.kind(), error.source()) {
        (ErrorKind::ValueValidation, Some(why)) => why.to_string(),
        (ErrorKind::InvalidValue, _) if error.get(ContextKind::ValidValue).is_some() => {
            format!("must be one of {}", shown(&error, ContextKind::ValidValue))
        }
        _ => return Stop::Wrong(first_line(&error)),
    };
    Stop::Wrong(format!("{name} {why}, not {value:?}"))
}

fn shown(error: &clap::Error, kind: ContextKind) -> String {
    match error.get(kind) {
        Some(ContextValue::String(text)) => text.clone(),
        Some(ContextValue::Strings(texts)) => texts.join(", "),
        _ => String::new(),
    }
}

fn first_line(error: &clap::Error) -> String {
    let text = error.to_string();
    let line = text.lines().next().unwrap_or_default();
    line.trim_start_matches("error: ").to_owned()
}

/// The file, and what of it has not been used yet.
#[derive(Default)]
struct File {
    path: PathBuf,
    table: Table,
}

impl File {
    fn read(path: PathBuf, named_by: &str) -> Result<Self, Stop> {
        let text = fs::read_to_string(&path).map_err(|error| {
            Stop::Wrong(format!(
                "{named_by}: cannot read {}: {error}",
                path.display()
            ))
        })?;
        match text.parse() {
            Ok(table) => Ok(Self { path, table }),
            Err(error) => Err(Stop::Wrong(not_toml(&path, &text, &error))),
        }
    }

    /// A value as flags would have it.
    fn texts(&self, key: &str, value: Value) -> Result<Vec<OsString>, Stop> {
        let values = match value {
            Value::Array(values) => values,
            value => vec![value],
        };
        let texts = values.into_iter().map(|value| match value {
            Value::String(text) => Ok(text.into()),
            Value::Integer(number) => Ok(number.to_string().into()),
            Value::Float(number) => Ok(number.to_string().into()),
            Value::Boolean(truth) => Ok(truth.to_string().into()),
            Value::Datetime(_) | Value::Array(_) | Value::Table(_) => Err(self.wrong(
                format_args!("{key} must be a text, a number, true or false, or a list of them"),
            )),
        });
        texts.collect()
    }

    fn wrong(&self, what: fmt::Arguments<'_>) -> Stop {
        Stop::Wrong(format!("{}: {what}", self.path.display()))
    }
}

/// The line and the reason; not the line's text, which may be a password.
fn not_toml(path: &Path, text: &str, error: &toml::de::Error) -> String {
    let before = error.span().and_then(|span| text.get(..span.start));
    let line = before.map_or(1, |before| before.matches('\n').count() + 1);
    let reason = error.message().lines().next().unwrap_or_default();
    format!("{}: line {line}: {reason}", path.display())
}
