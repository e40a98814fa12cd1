//! Layers of settings: flags over environment over file. Values from the environment and the file are turned into
//! flags, so that every value passes the same parser and gets the same errors.

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

/// Reason why the program ends before it starts.
#[derive(Debug)]
pub enum Stop {
    /// A requested text, such as `--help`.
    Answer(clap::Error),
    /// Description of an invalid setting and of what is allowed. Never repeats a secret.
    Invalid(String),
}

impl Stop {
    /// Prints the text, and returns the exit status.
    pub fn print(&self) -> ExitCode {
        // An error here cannot be reported either.
        let _ = match self {
            Self::Answer(text) => text.print(),
            Self::Invalid(text) => writeln!(io::stderr(), "honcho-service: {text}"),
        };
        ExitCode::from(match self {
            Self::Answer(_) => 0,
            Self::Invalid(_) => 2,
        })
    }
}

/// A setting with an invalid value.
#[derive(Debug)]
pub(super) struct InvalidSetting {
    subject: Subject,
    why: String,
}

#[derive(Debug)]
enum Subject {
    Setting(&'static str),
    Variable(&'static str),
}

impl InvalidSetting {
    /// An invalid setting of ours. `why` must not contain its value if that is a secret.
    pub(super) fn setting(name: &'static str, why: impl Into<String>) -> Self {
        Self {
            subject: Subject::Setting(name),
            why: why.into(),
        }
    }

    /// An invalid variable that is not a setting of ours.
    pub(super) fn variable(name: &'static str, why: impl Into<String>) -> Self {
        Self {
            subject: Subject::Variable(name),
            why: why.into(),
        }
    }
}

/// The source of each setting that is set.
#[derive(Debug, Default)]
pub(super) struct Sources(HashMap<String, Source>);

#[derive(Debug)]
enum Source {
    Flag,
    Variable,
    File(PathBuf),
}

impl Sources {
    /// Describes an invalid value, under the name by which it was set.
    pub(super) fn explain(&self, invalid: InvalidSetting) -> Stop {
        let InvalidSetting { subject, why } = invalid;
        Stop::Invalid(match subject {
            Subject::Setting(name) => format!("{}: {why}", self.name(name)),
            Subject::Variable(name) => format!("{name}: {why}"),
        })
    }

    fn name(&self, setting: &str) -> String {
        match self.0.get(setting) {
            Some(Source::Flag) => format!("--{}", setting.replace('_', "-")),
            Some(Source::File(file)) => format!("{}: {setting}", file.display()),
            Some(Source::Variable) | None => variable_of(setting),
        }
    }
}

/// Parses the command line, completed by the environment and the file.
pub(super) fn load<S: Parser>(
    mut arguments: Vec<OsString>,
    variable: &dyn Fn(&str) -> Option<OsString>,
) -> Result<(S, Sources), Stop> {
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
    let mut sources = Sources::default();
    for setting in settings(&command) {
        let id = setting.get_id().as_str();
        let in_file = file.table.remove(id);
        let (values, source) = if flags.value_source(id) == Some(ValueSource::CommandLine) {
            (Vec::new(), Source::Flag)
        } else if let Some(value) = variable(&variable_of(id)) {
            (vec![value], Source::Variable)
        } else if let Some(value) = in_file {
            (file.texts(id, value)?, Source::File(file.path.clone()))
        } else {
            continue;
        };
        for value in values {
            let mut flag = OsString::from(format!("--{}=", setting.get_long().unwrap_or(id)));
            flag.push(value);
            arguments.push(flag);
        }
        sources.0.insert(id.to_owned(), source);
    }
    if let Some(key) = file.table.keys().next() {
        return Err(file.invalid(format_args!(
            "there is no setting {key:?}; --help lists them"
        )));
    }
    match S::try_parse_from(arguments) {
        Ok(settings) => Ok((settings, sources)),
        Err(error) => Err(refused(&command, &sources, error)),
    }
}

fn variable_of(setting: &str) -> String {
    setting.to_uppercase()
}

/// All settings that the environment and the file can set.
fn settings(command: &Command) -> impl Iterator<Item = &Arg> {
    command
        .get_arguments()
        .filter(|argument| argument.get_id() != FILE.0 && argument.get_action().takes_values())
}

/// Reads the flags without parsing their values.
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
            ErrorKind::UnknownArgument => Stop::Invalid(unknown(&error)),
            _ => Stop::Invalid(first_line(&error)),
        })
}

/// Describes an unknown flag. An argument that is not a flag is not repeated: it may be a connection string.
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

/// Describes a value that its parser refuses.
fn refused(command: &Command, sources: &Sources, error: clap::Error) -> Stop {
    let flag = shown(&error, ContextKind::InvalidArg);
    let setting = settings(command).find(|setting| {
        let long = setting.get_long().unwrap_or_default();
        flag.strip_prefix("--")
            .and_then(|rest| rest.split([' ', '=']).next())
            .is_some_and(|name| name == long)
    });
    let Some(setting) = setting else {
        return Stop::Invalid(first_line(&error));
    };
    let name = sources.name(setting.get_id().as_str());
    let value = shown(&error, ContextKind::InvalidValue);
    let why = match (error.kind(), error.source()) {
        (ErrorKind::ValueValidation, Some(why)) => why.to_string(),
        (ErrorKind::InvalidValue, _) if error.get(ContextKind::ValidValue).is_some() => {
            format!("must be one of {}", shown(&error, ContextKind::ValidValue))
        }
        _ => return Stop::Invalid(first_line(&error)),
    };
    Stop::Invalid(format!("{name} {why}, not {value:?}"))
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

/// The file, with the keys that have not been used yet.
#[derive(Default)]
struct File {
    path: PathBuf,
    table: Table,
}

impl File {
    fn read(path: PathBuf, named_by: &str) -> Result<Self, Stop> {
        let text = fs::read_to_string(&path).map_err(|error| {
            Stop::Invalid(format!(
                "{named_by}: cannot read {}: {error}",
                path.display()
            ))
        })?;
        match text.parse() {
            Ok(table) => Ok(Self { path, table }),
            Err(error) => Err(Stop::Invalid(not_toml(&path, &text, &error))),
        }
    }

    /// Turns a value into the texts that flags have.
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
            Value::Datetime(_) | Value::Array(_) | Value::Table(_) => Err(self.invalid(
                format_args!("{key} must be a text, a number, true or false, or a list of them"),
            )),
        });
        texts.collect()
    }

    fn invalid(&self, what: fmt::Arguments<'_>) -> Stop {
        Stop::Invalid(format!("{}: {what}", self.path.display()))
    }
}

/// Describes a syntax error by line and reason, without the line's text, which may be a password.
fn not_toml(path: &Path, text: &str, error: &toml::de::Error) -> String {
    let before = error.span().and_then(|span| text.get(..span.start));
    let line = before.map_or(1, |before| before.matches('\n').count() + 1);
    let reason = error.message().lines().next().unwrap_or_default();
    format!("{}: line {line}: {reason}", path.display())
}
