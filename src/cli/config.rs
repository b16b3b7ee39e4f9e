//! `gatepost config`: the settings that count, each with where it comes from. The text form is YAML that reads back as
//! the same settings.

use std::io::{self, Write};
use std::path::PathBuf;

use serde_json::{Map, Value as Json, json};

use super::source::{key_value, source};
use super::{complain, exit};
use crate::audit::scrub::scrub_text;
use crate::config::load::{Origin, Setting, SettingValue, effective, is_plain_text, json_schema};

/// Print the settings that count, each with where it comes from.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Behind each value stands where it comes from: file and line, the environment variable, `--set`, or `default`. Secrets \
are in files of their own, of which the names alone are shown; what looks like a secret anywhere else is shown as \
`(hidden)`.

    gatepost config --config gatepost.yaml
    gatepost config --config gatepost.yaml --only-set
    gatepost config --config gatepost.yaml --format json | jq '.\"server.listen\"'
    gatepost config --schema > gatepost.schema.json       for editors

Exit codes: 0 shown, 64 the configuration is wrong; every mistake is told at once.")]
pub struct ConfigArgs {
    /// The configuration file
    #[arg(long, short, value_name = "FILE", env = "GATEPOST_CONFIG", required_unless_present = "schema")]
    pub config: Option<PathBuf>,
    /// One setting over the file and the environment; may be given many times
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = key_value)]
    pub set: Vec<(String, String)>,
    /// How it looks
    #[arg(long, value_enum, default_value_t = ConfigFormat::Yaml)]
    pub format: ConfigFormat,
    /// Leave out what is nowhere set
    #[arg(long)]
    pub only_set: bool,
    /// Print the JSON Schema of the configuration file instead
    #[arg(long)]
    pub schema: bool,
}

/// How the settings are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum ConfigFormat {
    /// As the file would be written, with where each value comes from as a comment
    Yaml,
    /// For machines: an object of keys, each with `value` and `origin`
    Json,
}

/// What stands in place of a secret: never a part of it, nor how long it is.
const HIDDEN: &str = "(hidden)";
/// Comments stand no further to the right than this, however long a line is.
const COLUMN: usize = 56;

/// Runs the command. The exit code is 0, or 64 when the configuration is wrong.
///
/// # Errors
/// The console's own.
pub fn run(args: &ConfigArgs, console: &mut impl Write, colours: bool) -> io::Result<u8> {
    let Some(file) = args.config.as_ref().filter(|_| !args.schema) else {
        serde_json::to_writer_pretty(&mut *console, &json_schema())?;
        writeln!(console)?;
        return Ok(0);
    };
    let settings = match effective(&source(file, &args.set)) {
        Ok(settings) => settings,
        Err(report) => {
            complain(&format!("the configuration can't be used:\n{report}"));
            return Ok(exit::CONFIGURATION);
        }
    };
    let settings = if args.only_set { written(settings) } else { settings };
    match args.format {
        ConfigFormat::Yaml => yaml(&settings, console, colours)?,
        ConfigFormat::Json => {
            let mut all = Map::new();
            flat("", &settings, &mut all);
            serde_json::to_writer_pretty(&mut *console, &all)?;
            writeln!(console)?;
        }
    }
    Ok(0)
}

/// Without what nobody wrote.
fn written(setting: Setting) -> Setting {
    let value = match setting.value {
        SettingValue::Section(entries) => {
            let entries = entries.into_iter().filter(|(_, entry)| entry.is_written());
            SettingValue::Section(entries.map(|(key, entry)| (key, written(entry))).collect())
        }
        SettingValue::List(items) => SettingValue::List(items.into_iter().map(written).collect()),
        plain @ SettingValue::Plain(_) => plain,
    };
    Setting { value, ..setting }
}

fn origin(setting: &Setting) -> String {
    match (&setting.origin, &setting.value) {
        (Some(origin), _) => origin.to_string(),
        (None, SettingValue::Plain(Json::Null)) => "not set".to_owned(),
        (None, _) => "default".to_owned(),
    }
}

/// The value, unless it looks like a secret that was put in the wrong place.
fn shown(value: &Json) -> Json {
    match value {
        Json::String(text) if scrub_text(text).as_ref() != text.as_str() => HIDDEN.into(),
        Json::Null | Json::Bool(_) | Json::Number(_) | Json::String(_) | Json::Array(_) | Json::Object(_) => {
            value.clone()
        }
    }
}

/// The values of a list that has one line: plain ones, all from where the list itself is.
fn on_one_line(items: &[Setting], at: Option<&Origin>) -> Option<Vec<Json>> {
    let plain = |item: &Setting| match &item.value {
        SettingValue::Plain(value) if item.origin.as_ref() == at || item.origin.is_none() => Some(shown(value)),
        SettingValue::Plain(_) | SettingValue::List(_) | SettingValue::Section(_) => None,
    };
    items.iter().map(plain).collect()
}

/// `key: { value, origin }` for every value there is.
fn flat(key: &str, setting: &Setting, all: &mut Map<String, Json>) {
    let mut put = |value: Json| {
        all.insert(key.to_owned(), json!({ "value": value, "origin": origin(setting) }));
    };
    match &setting.value {
        SettingValue::Plain(value) => put(shown(value)),
        SettingValue::Section(entries) if entries.is_empty() => put(json!({})),
        SettingValue::Section(entries) => {
            for (name, entry) in entries {
                let key = if key.is_empty() { name.clone() } else { format!("{key}.{name}") };
                flat(&key, entry, all);
            }
        }
        SettingValue::List(items) => match on_one_line(items, setting.origin.as_ref()) {
            Some(values) => put(values.into()),
            None => items.iter().enumerate().for_each(|(index, item)| flat(&format!("{key}[{index}]"), item, all)),
        },
    }
}

/// A line, and what is said behind it.
type Line = (String, Option<String>);

fn yaml(settings: &Setting, console: &mut impl Write, colours: bool) -> io::Result<()> {
    let mut lines = Vec::new();
    if let SettingValue::Section(entries) = &settings.value {
        section(entries, 0, &mut lines);
    }
    let widths = lines.iter().filter(|(_, comment)| comment.is_some()).map(|(text, _)| text.chars().count());
    let column = widths.max().unwrap_or(0).min(COLUMN);
    let dim = if colours { anstyle::Style::new().dimmed() } else { anstyle::Style::new() };
    for (text, comment) in lines {
        match comment {
            Some(comment) => writeln!(console, "{text:<column$}  {dim}# {comment}{dim:#}")?,
            None => writeln!(console, "{text}")?,
        }
    }
    Ok(())
}

fn section(entries: &[(String, Setting)], indent: usize, lines: &mut Vec<Line>) {
    for (key, setting) in entries {
        let head = format!("{:indent$}{}:", "", text(key));
        below(&head, setting, indent + 2, lines);
    }
}

/// `head` and its value, on the same line or on those below it.
fn below(head: &str, setting: &Setting, indent: usize, lines: &mut Vec<Line>) {
    let comment = Some(origin(setting));
    match &setting.value {
        SettingValue::Plain(Json::Null) => lines.push((head.to_owned(), comment)),
        SettingValue::Plain(value) => lines.push((format!("{head} {}", scalar(&shown(value))), comment)),
        SettingValue::Section(entries) if entries.is_empty() => lines.push((format!("{head} {{}}"), comment)),
        SettingValue::Section(entries) => {
            lines.push((head.to_owned(), None));
            section(entries, indent, lines);
        }
        SettingValue::List(items) => match on_one_line(items, setting.origin.as_ref()) {
            Some(values) => {
                let values: Vec<String> = values.iter().map(flow_scalar).collect();
                lines.push((format!("{head} [{}]", values.join(", ")), comment));
            }
            None => {
                lines.push((head.to_owned(), None));
                items.iter().for_each(|one| item(one, indent, lines));
            }
        },
    }
}

fn item(setting: &Setting, indent: usize, lines: &mut Vec<Line>) {
    let dash = format!("{:indent$}-", "");
    match &setting.value {
        SettingValue::Section(entries) if !entries.is_empty() => {
            let from = lines.len();
            section(entries, indent + 2, lines);
            // The first key stands behind the dash.
            if let Some((first, _)) = lines.get_mut(from) {
                *first = format!("{dash} {}", first.trim_start());
            }
        }
        SettingValue::Section(_) | SettingValue::List(_) | SettingValue::Plain(_) => {
            below(&dash, setting, indent + 2, lines);
        }
    }
}

fn scalar(value: &Json) -> String {
    value.as_str().map_or_else(|| value.to_string(), text)
}

/// Inside brackets more characters mean something.
fn flow_scalar(value: &Json) -> String {
    match value.as_str().filter(|value| !value.contains([',', '[', ']', '{', '}'])) {
        Some(plain) => text(plain),
        None => value.to_string(),
    }
}

/// As it is where that is read as this text, in quotes otherwise; JSON's quotes are YAML's too.
fn text(value: &str) -> String {
    if is_plain_text(value) { value.to_owned() } else { Json::from(value).to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_quoted_where_yaml_would_read_something_else() {
        let table = [
            ("127.0.0.1:8443", "127.0.0.1:8443", "an address"),
            ("spiffe://a.example/b", "spiffe://a.example/b", "a colon without a space"),
            ("true", "\"true\"", "no longer text"),
            ("30", "\"30\"", "a number"),
            ("", "\"\"", "nothing"),
            ("a: b", "\"a: b\"", "a section"),
            ("a #b", "\"a #b\"", "a comment"),
            ("*", "\"*\"", "an alias"),
            ("a\nb", "\"a\\nb\"", "two lines"),
            (" a", "\" a\"", "a space"),
            ("null", "\"null\"", "nothing at all"),
        ];
        for (value, expected, why) in table {
            assert_eq!(text(value), expected, "{why}");
        }
        assert_eq!(flow_scalar(&"a,b".into()), "\"a,b\"", "two items");
    }
}
