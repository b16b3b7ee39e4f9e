//! Values framed by kind and length: two that differ in anything never look the same as bytes.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::io::Write as _;

use cedar_policy_core::ast::{EntityUID, Literal, Value, ValueKind};
use smol_str::SmolStr;

/// Kind, length, bytes.
#[derive(Default)]
pub(super) struct Frame {
    pub(super) bytes: Vec<u8>,
}

impl Frame {
    pub(super) fn part(&mut self, kind: u8, bytes: &[u8]) {
        self.bytes.push(kind);
        self.bytes.extend_from_slice(&(bytes.len() as u64).to_be_bytes());
        self.bytes.extend_from_slice(bytes);
    }

    pub(super) fn text(&mut self, kind: u8, text: &str) {
        self.part(kind, text.as_bytes());
    }

    /// As it is displayed.
    pub(super) fn display(&mut self, kind: u8, shown: impl Display) {
        self.part(kind, &[]);
        let start = self.bytes.len();
        // Writing to a Vec can't fail.
        let _ = write!(self.bytes, "{shown}");
        let length = ((self.bytes.len() - start) as u64).to_be_bytes();
        if let Some(place) = start.checked_sub(length.len()).and_then(|from| self.bytes.get_mut(from..start)) {
            place.copy_from_slice(&length);
        }
    }

    pub(super) fn uid(&mut self, kind: u8, uid: &EntityUID) {
        self.display(kind, uid.entity_type());
        self.text(kind, uid.eid().as_ref());
    }

    pub(super) fn record(&mut self, kind: u8, record: &BTreeMap<SmolStr, Value>) {
        self.members(kind, record.iter());
    }

    pub(super) fn members<'v>(&mut self, kind: u8, members: impl Iterator<Item = (&'v SmolStr, &'v Value)> + Clone) {
        self.part(kind, &(members.clone().count() as u64).to_be_bytes());
        for (name, value) in members {
            self.text(kind, name);
            self.value(&value.value);
        }
    }

    pub(super) fn value(&mut self, value: &ValueKind) {
        match value {
            ValueKind::Lit(Literal::Bool(value)) => self.part(20, &[u8::from(*value)]),
            ValueKind::Lit(Literal::Long(value)) => self.part(21, &value.to_be_bytes()),
            ValueKind::Lit(Literal::String(value)) => self.text(22, value),
            ValueKind::Lit(Literal::EntityUID(uid)) => self.uid(23, uid),
            ValueKind::Set(set) => {
                self.part(24, &(set.len() as u64).to_be_bytes());
                for element in set.iter() {
                    self.value(&element.value);
                }
            }
            ValueKind::Record(record) => self.record(25, record),
            ValueKind::ExtensionValue(_) => self.display(26, value),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_displayed_is_framed_as_its_text() {
        for text in ["", "Order", "Shop::Order", "a text of more bytes than a length has"] {
            let (mut shown, mut written) = (Frame::default(), Frame::default());
            for frame in [&mut shown, &mut written] {
                frame.text(1, "before");
            }
            shown.display(2, text);
            written.text(2, text);
            assert_eq!(shown.bytes, written.bytes, "{text}");
        }
    }
}
