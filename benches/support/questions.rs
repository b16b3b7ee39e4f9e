//! What is asked, as messages: about the shop of the worked example, or about the documents of a generated bundle.

use gatepost::proto::v1;
use prost_types::{Struct, Value, value::Kind};

use super::generated;

/// Questions in a batch.
pub const BATCH: u64 = 100;

/// What the questions of a run are about, and so its server's bundle.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub enum Topic {
    /// May Alice read her order, and which of its fields?
    Shop,
    /// May `u4` read a document of 20 fields, in a folder that differs from question to question, and which of them? The
    /// bundle has so many policies.
    Documents(usize),
}

impl Topic {
    /// One question about this object.
    pub fn check(self, token: &str, object: u64) -> v1::CheckRequest {
        let item = self.item(object);
        v1::CheckRequest {
            subject: Some(v1::check_request::Subject::Token(token.to_owned())),
            action: item.action,
            resource: item.resource,
            fields: item.fields,
            context: self.context(),
            ..Default::default()
        }
    }

    /// As many as a batch may have, about this object and those that follow.
    pub fn batch(self, token: &str, first: u64) -> v1::BatchCheckRequest {
        v1::BatchCheckRequest {
            subject: Some(v1::batch_check_request::Subject::Token(token.to_owned())),
            items: (first..first + BATCH).map(|object| self.item(object)).collect(),
            context: self.context(),
            ..Default::default()
        }
    }

    /// One question of a stream, always about the same object.
    pub fn of_stream(self, id: u64) -> v1::StreamQuestion {
        let v1::BatchCheckItem { action, resource, fields } = self.item(0);
        v1::StreamQuestion { id, action, resource, fields, context: self.context(), ..Default::default() }
    }

    fn item(self, object: u64) -> v1::BatchCheckItem {
        match self {
            Self::Shop => order(object),
            Self::Documents(policies) => document(object, policies),
        }
    }

    fn context(self) -> Option<Struct> {
        match self {
            Self::Shop => None,
            Self::Documents(_) => Some(record([("mfa", value(Kind::BoolValue(true)))])),
        }
    }
}

fn order(object: u64) -> v1::BatchCheckItem {
    let attributes = [
        ("tenant", entity("Tenant", "acme")),
        ("customer", entity("User", "alice")),
        ("status", text("paid")),
        ("total", value(Kind::NumberValue(4_200.0))),
    ];
    asked("Order.read", "Order", format!("ord-{object:016x}"), record(attributes), Vec::new())
}

fn document(object: u64, policies: usize) -> v1::BatchCheckItem {
    // Neighbours are in folders far apart, as they are in real life.
    let folder = object.wrapping_mul(7) % generated::folders(policies) as u64;
    let parents = vec![v1::EntityRef { r#type: "Folder".to_owned(), id: format!("f{folder}") }];
    asked("D20.read", "D20", format!("doc-{object:016x}"), record([("owner", entity("User", "u4"))]), parents)
}

fn asked(action: &str, kind: &str, id: String, attributes: Struct, parents: Vec<v1::EntityRef>) -> v1::BatchCheckItem {
    v1::BatchCheckItem {
        action: action.to_owned(),
        resource: Some(v1::Resource { r#type: kind.to_owned(), id: Some(id), attributes: Some(attributes), parents }),
        fields: Some(v1::FieldQuery { all: true, ..Default::default() }),
    }
}

fn record<const N: usize>(members: [(&str, Value); N]) -> Struct {
    Struct { fields: members.into_iter().map(|(name, value)| (name.to_owned(), value)).collect() }
}

fn entity(entity_type: &str, id: &str) -> Value {
    value(Kind::StructValue(record([("type", text(entity_type)), ("id", text(id))])))
}

fn text(text: &str) -> Value {
    value(Kind::StringValue(text.to_owned()))
}

fn value(kind: Kind) -> Value {
    Value { kind: Some(kind) }
}
