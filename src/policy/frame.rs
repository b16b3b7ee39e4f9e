//! Values framed by kind and length: two that differ in anything never look the same as bytes.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::io::Write as _;

use cedar_policy_core::ast::{EntityType, EntityUID, Literal, Value, ValueKind};
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
        self.written(kind, format_args!("{shown}"));
    }

    fn written(&mut self, kind: u8, text: std::fmt::Arguments<'_>) {
        self.part(kind, &[]);
        let start = self.bytes.len();
        // Writing to a Vec can't fail.
        let _ = self.bytes.write_fmt(text);
        let length = ((self.bytes.len() - start) as u64).to_be_bytes();
        if let Some(place) = start.checked_sub(length.len()).and_then(|from| self.bytes.get_mut(from..start)) {
            place.copy_from_slice(&length);
        }
    }

    pub(super) fn uid(&mut self, kind: u8, uid: &EntityUID) {
        self.entity_type(kind, uid.entity_type());
        self.text(kind, uid.eid().as_ref());
    }

    /// As it is displayed: most have no namespace, and are displayed as their only part.
    pub(super) fn entity_type(&mut self, kind: u8, entity_type: &EntityType) {
        let name = entity_type.name();
        if name.is_unqualified() {
            self.text(kind, name.basename_as_ref().as_ref());
        } else {
            self.display(kind, entity_type);
        }
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
            // Its kind, and all that it is equal by: the call that would make it anew is several times as dear.
            ValueKind::ExtensionValue(value) => self.written(26, format_args!("{:?}", value.value())),
        }
    }
}

#[cfg(test)]
mod tests {
    use cedar_policy_core::ast::{Expr, RestrictedExpr};
    use cedar_policy_core::evaluator::RestrictedEvaluator;
    use cedar_policy_core::extensions::Extensions;

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

    #[test]
    fn entity_types_are_framed_as_they_are_displayed() {
        for name in ["Order", "Shop::Order", "A::B::C"] {
            let entity_type: EntityType = name.parse().unwrap();
            let (mut one, mut other) = (Frame::default(), Frame::default());
            one.entity_type(3, &entity_type);
            other.display(3, &entity_type);
            assert_eq!(one.bytes, other.bytes, "{name}");
        }
    }

    /// By what they are, however they were made, and no two of them alike.
    #[test]
    fn values_of_extension_types_are_framed_alike_if_they_are_equal_and_never_otherwise() {
        let table = [
            vec!["datetime(\"1970-01-01\")", "datetime(\"1970-01-01T00:00:00Z\")"],
            vec!["datetime(\"1970-01-02\")", "datetime(\"1970-01-01\").offset(duration(\"1d\"))"],
            vec!["datetime(\"1969-12-31\")"],
            vec!["duration(\"0ms\")", "duration(\"0s\")"],
            vec!["duration(\"1d\")", "duration(\"24h\")", "duration(\"86400000ms\")"],
            vec!["duration(\"-1d\")"],
            vec!["decimal(\"0.0\")", "decimal(\"0.0000\")"],
            vec!["decimal(\"8640.0\")"],
            vec!["decimal(\"-8640.0\")"],
            vec!["ip(\"10.0.0.1\")", "ip(\"10.0.0.1/32\")"],
            vec!["ip(\"10.0.0.1/31\")"],
            vec!["ip(\"::1\")", "ip(\"0:0:0:0:0:0:0:1/128\")"],
            vec!["ip(\"::a00:1\")"],
            vec!["\"DateTime { epoch: 0 }\""],
        ];
        let framed = |text: &str| {
            let expression: Expr = text.parse().unwrap();
            let evaluator = RestrictedEvaluator::new(Extensions::all_available());
            let restricted = RestrictedExpr::new(expression).unwrap();
            let value = evaluator.interpret(restricted.as_borrowed()).unwrap();
            let mut frame = Frame::default();
            frame.value(&value.value);
            frame.bytes
        };
        let mut seen = std::collections::BTreeMap::new();
        for (at, same) in table.iter().enumerate() {
            for text in same {
                assert_eq!(*seen.entry(framed(text)).or_insert(at), at, "{text} looks like another");
            }
        }
        assert_eq!(seen.len(), table.len(), "equal ones are framed alike");
    }
}
