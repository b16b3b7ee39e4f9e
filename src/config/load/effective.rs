//! Every setting as it counts, and where it comes from. Defaults are those of `raw`, the very ones that are used.

use serde_json::Value as Json;

use super::Origin;
use super::tree::{Node, Step};

/// A setting, or a section of them.
#[derive(Debug, Clone, PartialEq)]
pub struct Setting {
    /// What counts.
    pub value: SettingValue,
    /// Where it was written; `None`: nowhere, it is the default.
    pub origin: Option<Origin>,
}

/// What counts for one key.
#[derive(Debug, Clone, PartialEq)]
pub enum SettingValue {
    /// Text, a number, `true` or `false`; null: not set.
    Plain(Json),
    /// A list.
    List(Vec<Setting>),
    /// Keys, the plain ones first, each kind by name.
    Section(Vec<(String, Setting)>),
}

impl Setting {
    /// Whether anybody wrote it, or anything in it.
    #[must_use]
    pub fn is_written(&self) -> bool {
        self.origin.is_some()
            || match &self.value {
                SettingValue::Plain(_) => false,
                SettingValue::List(items) => items.iter().any(Self::is_written),
                SettingValue::Section(entries) => entries.iter().any(|(_, entry)| entry.is_written()),
            }
    }

    /// What stands in `counts`, with the places of what was written of it.
    pub(super) fn of(counts: Json, written: Option<&Node>) -> Self {
        let origin = written.and_then(|node| node.at.clone());
        let under = |step: Step| written.and_then(|node| node.child(&step));
        let value = match counts {
            Json::Object(entries) => {
                let entry = |(key, value)| {
                    let setting = Self::of(value, under(Step::Key(String::clone(&key))));
                    (key, setting)
                };
                let mut entries: Vec<(String, Self)> = entries.into_iter().map(entry).collect();
                // Sorted here: whether `serde_json` keeps an order is up to the other crates of the build.
                entries.sort_by(|left, right| (left.1.is_section(), &left.0).cmp(&(right.1.is_section(), &right.0)));
                SettingValue::Section(entries)
            }
            Json::Array(items) => {
                let item = |(index, item)| Self::of(item, under(Step::Index(index)));
                SettingValue::List(items.into_iter().enumerate().map(item).collect())
            }
            plain @ (Json::Null | Json::Bool(_) | Json::Number(_) | Json::String(_)) => SettingValue::Plain(plain),
        };
        Self { value, origin }
    }

    fn is_section(&self) -> bool {
        match &self.value {
            SettingValue::Plain(_) => false,
            SettingValue::List(items) => items.iter().any(Self::is_section),
            SettingValue::Section(_) => true,
        }
    }
}
