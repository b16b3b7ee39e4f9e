//! Files that hold secrets, wherever the settings name one: does every user of the machine see them?

use std::path::Path;

use serde_json::Value as Json;

use super::findings::{Findings, Group};
use crate::cli::source::SourceArgs;
use crate::config::load::{Setting, SettingValue, effective};
use crate::trust::is_open_to_all;

/// What the keys are called that name such a file.
const SECRETS: [&str; 8] = [
    "private_key",
    "client_key",
    "client_secret_file",
    "shared_key_file",
    "key_file",
    "token_file",
    "api_key_file",
    "password_file",
];
/// What is in it is hashed; whoever may write it lets himself in.
const API_KEYS: &str = "api_keys.file";

pub(super) fn examine(source: &SourceArgs, findings: &mut Findings) {
    // They were read a moment ago; what has become wrong since is told next time.
    let Ok(settings) = effective(&source.source()) else { return };
    let folder = source.config.parent().unwrap_or(Path::new(""));
    look("", &settings, folder, findings);
}

fn look(key: &str, setting: &Setting, folder: &Path, findings: &mut Findings) {
    match &setting.value {
        SettingValue::Section(entries) => {
            for (name, entry) in entries {
                let inner = if key.is_empty() { name.clone() } else { format!("{key}.{name}") };
                look(&inner, entry, folder, findings);
            }
        }
        SettingValue::List(items) => {
            for (index, item) in items.iter().enumerate() {
                look(&format!("{key}[{index}]"), item, folder, findings);
            }
        }
        SettingValue::Plain(Json::String(path)) => {
            let name = key.rsplit('.').next().unwrap_or(key);
            let path = folder.join(path);
            if (SECRETS.contains(&name) || key == API_KEYS) && is_open_to_all(&path) {
                let says = format!("`{}` is open to every user of this machine", path.display());
                let mend = format!("`chmod 600 {}`, or 440 and a group of its own", path.display());
                findings.warn(Group::Configuration, "mode", key, says, mend);
            }
        }
        SettingValue::Plain(_) => {}
    }
}
