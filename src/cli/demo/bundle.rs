//! The worked example, carried in the binary for whoever has no `policies/` at hand.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Name and text of each of its files.
const FILES: [(&str, &str); 7] = [
    ("account.cedar", include_str!("../../../policies/account.cedar")),
    ("entities.json", include_str!("../../../policies/entities.json")),
    ("guardrails.cedar", include_str!("../../../policies/guardrails.cedar")),
    ("order.cedar", include_str!("../../../policies/order.cedar")),
    ("product.cedar", include_str!("../../../policies/product.cedar")),
    ("shop.cedarschema", include_str!("../../../policies/shop.cedarschema")),
    ("user.cedar", include_str!("../../../policies/user.cedar")),
];

/// `policies` of `current` if it is there, else the worked example, written into `folder`.
///
/// # Errors
/// When files can't be read or written.
pub fn find_or_write(current: &Path, folder: &Path) -> io::Result<PathBuf> {
    let at_hand = current.join("policies");
    if at_hand.is_dir() {
        return fs::canonicalize(at_hand);
    }
    let written = folder.join("policies");
    fs::create_dir(&written)?;
    for (name, text) in FILES {
        fs::write(written.join(name), text)?;
    }
    Ok(written)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_binary_carries_every_file_of_the_worked_example() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("policies");
        let mut there: Vec<String> = fs::read_dir(folder)
            .expect("the folder")
            .map(|entry| entry.expect("an entry"))
            .filter(|entry| entry.path().is_file())
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        there.sort();
        assert_eq!(FILES.map(|(name, _)| name.to_owned()).to_vec(), there);
    }

    #[test]
    fn policies_at_hand_come_first_and_the_carried_ones_fill_in() {
        let (current, folder) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
        let carried = find_or_write(current.path(), folder.path()).expect("written");
        assert_eq!(carried, folder.path().join("policies"));
        assert_eq!(fs::read_dir(carried).expect("the folder").count(), FILES.len());
        fs::create_dir(current.path().join("policies")).expect("made");
        let found = find_or_write(current.path(), folder.path()).expect("found");
        assert_eq!(found, fs::canonicalize(current.path().join("policies")).expect("a path"));
    }
}
