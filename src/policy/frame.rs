//! Values framed by kind and length: two that differ in anything never look the same as bytes.

use std::collections::BTreeMap;

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

    pub(super) fn uid(&mut self, kind: u8, uid: &EntityUID) {
        self.text(kind, &uid.entity_type().to_string());
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
            ValueKind::ExtensionValue(_) => self.text(26, &value.to_string()),
        }
    }
}
