//! The shape of the file, written down: as JSON Schema for editors and Helm, as a page for people.
//!
//! Both come from the structs that read the file, so they can't say anything else than what is read.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::Value as Json;

use crate::config::raw::RawConfig;

/// The JSON Schema (draft 2020-12) of the configuration file.
#[must_use]
pub fn json_schema() -> Json {
    schemars::schema_for!(RawConfig).to_value()
}

/// The page `docs/reference/configuration.md`.
#[must_use]
pub fn reference_markdown() -> String {
    let schema = json_schema();
    let mut page = Page { root: &schema, text: PREAMBLE.to_owned() };
    page.section("", &schema);
    page.text
}

const PREAMBLE: &str = "\
# Configuration reference

<!-- Made from src/config/raw.rs by `UPDATE_REFERENCE=1 cargo test --lib reference`; change it there. -->

`gatepost serve --config gatepost.yaml` reads one YAML file, lays the environment over it, and flags over that.

- **Environment**: `GATEPOST_SERVER__LISTEN=0.0.0.0:8443`. Two underscores separate keys; items of a list go by number, \
`GATEPOST_ISSUERS__0__AUDIENCES='[gatepost]'`. Names without two underscores are not settings.
- **Flags**: `--set server.listen=0.0.0.0:8443`, `--set 'issuers[0].audiences=[gatepost]'`.
- Values of lists and sections are YAML; text needs no quotes where only text can stand.
- **Times** are a whole number and `ms`, `s`, `m` or `h`: `200ms`, `15m`. **Sizes** are a number of bytes, or a whole \
number and `B`, `KiB`, `MiB` or `GiB`: `256KiB`.
- Relative paths start at the folder of the configuration file.
- Unknown keys, keys that are there twice and values out of range are refused, all at once, by file, line and key. \
Gatepost then ends with exit code 64.
- A key without a value counts as not set. Nothing here switches authentication, verification or the audit trail off.
";

struct Page<'a> {
    root: &'a Json,
    text: String,
}

impl<'a> Page<'a> {
    /// The keys of one section in a table, then the sections inside it.
    fn section(&mut self, key: &str, schema: &'a Json) {
        let Some(properties) = schema.get("properties").and_then(Json::as_object) else { return };
        // Sorted here: whether `serde_json` keeps an order is up to the other crates of the build.
        let properties: BTreeMap<_, _> = properties.iter().collect();
        let (sections, plain): (Vec<_>, Vec<_>) =
            properties.into_iter().partition(|(_, schema)| self.inside(schema).is_some());
        let rows = plain.into_iter().chain(sections.iter().copied());
        if !key.is_empty() {
            // Writing to a String can't fail.
            let _ = write!(self.text, "\n## `{key}`\n\n| key | type | default | what it is |\n|---|---|---|---|\n");
            for (name, schema) in rows {
                let cells = [kind(self.root, schema), default(schema), description(self.root, schema)];
                let _ = writeln!(self.text, "| `{name}` | {} |", cells.join(" | "));
            }
        }
        for (name, schema) in sections {
            let Some((suffix, inner)) = self.inside(schema) else { continue };
            let key = if key.is_empty() { format!("{name}{suffix}") } else { format!("{key}.{name}{suffix}") };
            self.section(&key, inner);
        }
    }

    /// The section that a key opens, itself or as the items of a list or the values of a map.
    fn inside(&self, schema: &'a Json) -> Option<(&'static str, &'a Json)> {
        let schema = resolve(self.root, schema);
        if schema.get("properties").is_some() {
            return Some(("", schema));
        }
        let choices = schema.get("anyOf").and_then(Json::as_array).into_iter().flatten();
        let list = choices.chain([schema]).find(|one| one.get("items").is_some());
        let items = list.and_then(|list| list.get("items")).map(|items| ("[]", items));
        let values = schema.get("additionalProperties").filter(|values| values.is_object()).map(|v| (".*", v));
        let (suffix, inner) = items.or(values)?;
        let candidates = inner.get("anyOf").or_else(|| resolve(self.root, inner).get("anyOf"));
        let candidates = candidates.and_then(Json::as_array).map_or_else(|| vec![inner], |all| all.iter().collect());
        let section =
            candidates.into_iter().map(|one| resolve(self.root, one)).find(|one| one.get("properties").is_some());
        section.map(|section| (suffix, section))
    }
}

/// Follows a reference and sees through "this or nothing".
fn resolve<'a>(root: &'a Json, schema: &'a Json) -> &'a Json {
    if let Some(pointer) = schema.get("$ref").and_then(Json::as_str).and_then(|pointer| pointer.strip_prefix('#')) {
        return root.pointer(pointer).map_or(schema, |target| resolve(root, target));
    }
    let some = schema
        .get("anyOf")
        .and_then(Json::as_array)
        .map(|all| all.iter().filter(|one| one.get("type").and_then(Json::as_str) != Some("null")).collect::<Vec<_>>());
    match some.as_deref() {
        Some([only]) => resolve(root, only),
        _ => schema,
    }
}

fn kind(root: &Json, schema: &Json) -> String {
    let schema = resolve(root, schema);
    if let Some(named) = schema.get("x-type").and_then(Json::as_str) {
        return named.to_owned();
    }
    if let Some(choices) = schema.get("enum").and_then(Json::as_array) {
        let quoted: Vec<String> = choices.iter().filter_map(Json::as_str).map(|choice| format!("`{choice}`")).collect();
        return quoted.join(" or ");
    }
    if let Some(choices) = schema.get("anyOf").and_then(Json::as_array) {
        return choices.iter().map(|choice| kind(root, choice)).collect::<Vec<_>>().join(" or ");
    }
    let kind = match schema.get("type") {
        Some(Json::Array(kinds)) => kinds.iter().filter_map(Json::as_str).find(|kind| *kind != "null"),
        Some(kind) => kind.as_str(),
        None => None,
    };
    match kind {
        Some("string") => "text".to_owned(),
        Some("integer") => "whole number".to_owned(),
        Some("boolean") => "`true` or `false`".to_owned(),
        Some("array") => {
            let items = schema.get("items").map(|items| self::kind(root, items)).unwrap_or_default();
            if items == "section" { "list of sections".to_owned() } else { format!("list of {items}") }
        }
        Some("object") => "section".to_owned(),
        other => other.unwrap_or("anything").to_owned(),
    }
}

fn default(schema: &Json) -> String {
    if schema.get("x-required").is_some() {
        return "**required**".to_owned();
    }
    match schema.get("default") {
        None | Some(Json::Null | Json::Object(_)) => String::new(),
        Some(Json::String(text)) => format!("`{text}`"),
        Some(Json::Array(items)) if items.is_empty() => "none".to_owned(),
        Some(Json::Array(items)) => {
            format!("`[{}]`", items.iter().filter_map(Json::as_str).collect::<Vec<_>>().join(", "))
        }
        Some(other) => format!("`{other}`"),
    }
}

fn description(root: &Json, schema: &Json) -> String {
    let own = schema.get("description").or_else(|| resolve(root, schema).get("description"));
    let mut text = own.and_then(Json::as_str).unwrap_or_default().replace('\n', " ").replace('|', "\\|");
    let bound =
        |name: &str| schema.get(name).map(|bound| bound.as_str().map_or_else(|| bound.to_string(), str::to_owned));
    if let (Some(least), Some(most)) = (bound("x-least"), bound("x-most")) {
        let _ = write!(text, " {least} to {most}.");
    }
    text
}
