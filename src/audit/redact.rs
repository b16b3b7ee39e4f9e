//! Which values may stand in a record: the ones on the operator's list, each as its rule says, and no other; and whose
//! ids stand there as pseudonyms.
//!
//! It copies what is named and never looks at the rest, so a new attribute stays out until somebody lists it. What is
//! copied goes through the net of [`scrub`](super::scrub) as well.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::SystemTime;

use aws_lc_rs::hmac;
use data_encoding::HEXLOWER;

use super::scrub::{SCRUBBED, is_card, is_secret_name, points, scrub_text};
use super::text::cut;
use super::{QuestionFacts, SubjectFacts};
use crate::clock::unix_seconds;
use crate::config::{AuditConfig, KeptValue, RedactRule};
use crate::model::entity::{EntityId, EntityType, EntityUid, RawRecord, RawValue};
use crate::secret::ExposeSecret as _;
use crate::token::TokenFacts;

/// Where a record of values came from.
#[derive(Debug, Clone, Copy)]
pub enum Place<'a> {
    /// Attributes of the principal, which has this type.
    Principal(&'a EntityType),
    /// Attributes of the resource, which has this type.
    Resource(&'a EntityType),
    /// The context.
    Context,
}

/// The allow-list of values, ready to be asked.
#[derive(Debug, Clone, Default)]
pub struct Redaction {
    attributes: BTreeMap<EntityType, BTreeMap<String, Listed>>,
    context: BTreeMap<String, Listed>,
    pseudonyms: Option<Arc<Pseudonyms>>,
}

/// What holds for a name on the list.
#[derive(Debug, Clone, Copy)]
struct Listed {
    rule: RedactRule,
    /// It is kept, and its name is a secret's.
    secret: bool,
}

impl Listed {
    fn new(name: &str, rule: RedactRule) -> Self {
        Self { rule, secret: rule == RedactRule::Keep && is_secret_name(name) }
    }
}

/// Values copied out of one place at most, nested ones included; lists and records end there.
const MAX_VALUES: usize = 64;
/// How deep a copied value may nest.
const MAX_DEPTH: usize = 4;
/// Stands where something was left out.
const LEFT_OUT: &str = "..";

impl Redaction {
    /// Keeps what `audit.attributes` names, as it says, and gives the ids of `audit.pseudonyms.ids` other names.
    #[must_use]
    pub fn new(config: &AuditConfig) -> Self {
        let mut redaction = Self { pseudonyms: Pseudonyms::new(config).map(Arc::new), ..Self::default() };
        for (kept, rule) in &config.attributes {
            let (names, name) = match kept {
                KeptValue::Attribute { entity_type, attribute } => {
                    (redaction.attributes.entry(entity_type.clone()).or_default(), attribute)
                }
                KeptValue::Context(name) => (&mut redaction.context, name),
            };
            names.insert(name.clone(), Listed::new(name, *rule));
        }
        redaction
    }

    /// The values of `record` that may be recorded at `now`, named `principal.x`, `resource.x` or `context.x` and sorted.
    ///
    /// Only top-level names are on the list; a listed record or list is copied whole, within 64 values and four
    /// levels, and its rule holds for every value in it. Long text is cut, and what looks like a secret is taken out.
    #[must_use]
    pub fn kept(&self, place: Place<'_>, record: &RawRecord, now: SystemTime) -> Vec<(String, RawValue)> {
        let (prefix, label, names) = match place {
            Place::Principal(entity_type) => ("principal", entity_type.as_str(), self.attributes.get(entity_type)),
            Place::Resource(entity_type) => ("resource", entity_type.as_str(), self.attributes.get(entity_type)),
            Place::Context => ("context", "context", Some(&self.context)),
        };
        let mut left = MAX_VALUES;
        let copies =
            names.into_iter().flatten().filter(|(_, on)| on.rule != RedactRule::Drop).filter_map(|(name, on)| {
                let value = record.get(name)?;
                let ruled = Ruled { rule: on.rule, pseudonyms: self.pseudonyms.as_deref(), label: (label, name), now };
                let copy = ruled.copied(value, on.secret, MAX_DEPTH, &mut left);
                Some(([prefix, ".", name].concat(), copy))
            });
        copies.collect()
    }

    /// Whether what is named in a record made at `one` time could have another name at `another`.
    #[must_use]
    pub fn renames_between(&self, one: SystemTime, another: SystemTime) -> bool {
        self.pseudonyms.as_ref().is_some_and(|names| names.period(one) != names.period(another))
    }

    /// Gives whoever a record is about another name, where the configuration says so.
    pub fn rename(&self, subject: &mut SubjectFacts, question: Option<&mut QuestionFacts>, now: SystemTime) {
        let Some(pseudonyms) = &self.pseudonyms else { return };
        pseudonyms.subject(subject, now);
        if let Some(question) = question {
            pseudonyms.resource(question, now);
        }
    }
}

/// One rule, at work on one listed value.
struct Ruled<'a> {
    rule: RedactRule,
    pseudonyms: Option<&'a Pseudonyms>,
    /// Where the value stands, so that equal values of different attributes do not look equal.
    label: (&'a str, &'a str),
    now: SystemTime,
}

impl Ruled<'_> {
    /// A bounded copy of `value`; `left` counts down over everything copied together. `secret`: its name says so.
    fn copied(&self, value: &RawValue, secret: bool, depth: usize, left: &mut usize) -> RawValue {
        let (Some(remaining), Some(below)) = (left.checked_sub(1), depth.checked_sub(1)) else {
            return RawValue::Text(LEFT_OUT.to_owned());
        };
        *left = remaining;
        match value {
            RawValue::List(items) => {
                let mut copy = Vec::new();
                for item in items {
                    let full = *left == 0;
                    copy.push(self.copied(item, secret, below, left));
                    if full {
                        break;
                    }
                }
                RawValue::List(copy)
            }
            RawValue::Record(record) => {
                // `{ path: password, message: .. }`: what is said of it may repeat it.
                let about =
                    record.iter().any(|(name, item)| matches!(item, RawValue::Text(text) if points(name, text)));
                let mut copy = RawRecord::new();
                for (name, item) in record {
                    if *left == 0 {
                        copy.insert(LEFT_OUT.to_owned(), RawValue::Text(LEFT_OUT.to_owned()));
                        break;
                    }
                    let pointing = matches!(item, RawValue::Text(text) if points(name, text));
                    let hidden = secret || is_secret_name(name) || (about && !pointing);
                    copy.insert(scrub_text(&cut(name)).into_owned(), self.copied(item, hidden, below, left));
                }
                RawValue::Record(copy)
            }
            RawValue::Bool(_) | RawValue::Number(_) | RawValue::Integer(_) | RawValue::Text(_) => {
                self.plain(value, secret)
            }
        }
    }

    fn plain(&self, value: &RawValue, secret: bool) -> RawValue {
        let text = match value {
            RawValue::Text(text) => Cow::Borrowed(text.as_str()),
            RawValue::Integer(number) => Cow::Owned(number.to_string()),
            RawValue::Number(number) => Cow::Owned(number.to_string()),
            // One of two values is told by its hash.
            RawValue::Bool(_) if self.rule == RedactRule::Keep => return value.clone(),
            RawValue::Bool(_) | RawValue::List(_) | RawValue::Record(_) => return RawValue::Text(LEFT_OUT.to_owned()),
        };
        match self.rule {
            RedactRule::Keep if secret => RawValue::Text(SCRUBBED.to_owned()),
            RedactRule::Keep => match value {
                RawValue::Integer(number) if is_card(*number) => RawValue::Text(SCRUBBED.to_owned()),
                RawValue::Text(text) => RawValue::Text(cut(&scrub_text(text)).into_owned()),
                RawValue::Bool(_)
                | RawValue::Number(_)
                | RawValue::Integer(_)
                | RawValue::List(_)
                | RawValue::Record(_) => value.clone(),
            },
            RedactRule::Drop => RawValue::Text(LEFT_OUT.to_owned()),
            RedactRule::Hash => {
                let (place, name) = self.label;
                let hash = self.pseudonyms.map(|keyed| keyed.name(&[place, name, &text], self.now));
                RawValue::Text(hash.unwrap_or_else(|| LEFT_OUT.to_owned()))
            }
            RedactRule::LastFour => {
                let characters = text.chars().count();
                // Of a short text the last four would be all, or nearly so.
                let shown = if characters >= 8 { text.chars().skip(characters - 4).collect() } else { String::new() };
                RawValue::Text(format!("{LEFT_OUT}{shown}"))
            }
            RedactRule::Truncate(most) => {
                let scrubbed = scrub_text(&text);
                let mut shown: String = scrubbed.chars().take(most).collect();
                if shown.len() < scrubbed.len() {
                    shown.push_str(LEFT_OUT);
                }
                RawValue::Text(cut(&shown).into_owned())
            }
        }
    }
}

/// Keyed names for ids and values: the same for the same within a period, and unrelated otherwise.
///
/// `hmac:<period>:<32 hex>`: HMAC-SHA-256 (RFC 2104), cut to 128 bits, with a key derived from the secret and the number of
/// the period. Without the key nobody can try values out.
#[derive(Debug)]
pub struct Pseudonyms {
    key: hmac::Key,
    rotate: u64,
    ids: BTreeSet<EntityType>,
}

impl Pseudonyms {
    /// What `audit.pseudonyms` says; `None` without it.
    #[must_use]
    pub fn new(config: &AuditConfig) -> Option<Self> {
        let settings = config.pseudonyms.as_ref()?;
        Some(Self {
            key: hmac::Key::new(hmac::HMAC_SHA256, settings.key.expose_secret()),
            rotate: settings.rotate.as_secs().max(1),
            ids: settings.ids.iter().cloned().collect(),
        })
    }

    fn period(&self, now: SystemTime) -> u64 {
        unix_seconds(now) / self.rotate
    }

    /// What stands for these parts at `now`.
    fn name(&self, parts: &[&str], now: SystemTime) -> String {
        let period = self.period(now);
        let derived = hmac::sign(&self.key, format!("gatepost-pseudonyms-v1 {period}").as_bytes());
        let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, derived.as_ref()));
        for part in parts {
            context.update(&(part.len() as u64).to_be_bytes());
            context.update(part.as_bytes());
        }
        let tag = context.sign();
        let short = tag.as_ref().first_chunk::<16>().map(|short| HEXLOWER.encode(short)).unwrap_or_default();
        format!("hmac:{period}:{short}")
    }

    /// What stands for an entity's id at `now`; `None`: ids of its type stand as they are.
    #[must_use]
    pub fn id(&self, uid: &EntityUid, now: SystemTime) -> Option<String> {
        self.ids.contains(&uid.entity_type).then(|| self.name(&["id", uid.entity_type.as_str(), uid.id.as_str()], now))
    }

    fn subject(&self, subject: &mut SubjectFacts, now: SystemTime) {
        let Some(principal) = &subject.principal else {
            // Whose it is was never found out, and it may be anybody's.
            if let Some(token) = subject.token.take().filter(|_| !self.ids.is_empty()) {
                let name = self.name(&["subject", &token.issuer, &token.subject], now);
                subject.token = Some(Arc::new(self.token(&token, name, now)));
            }
            return;
        };
        let Some(name) = self.id(principal, now) else { return };
        if let Some(token) = subject.token.take() {
            subject.token = Some(Arc::new(self.token(&token, name.clone(), now)));
        }
        let entity_type = principal.entity_type.clone();
        subject.principal = EntityId::parse(&name, 128).ok().map(|id| EntityUid { entity_type, id });
    }

    /// Those who act for a person may be people too.
    fn token(&self, token: &TokenFacts, subject: String, now: SystemTime) -> TokenFacts {
        let mut renamed = TokenFacts { subject, ..token.clone() };
        for actor in &mut renamed.actors {
            let issuer = actor.issuer.as_deref().unwrap_or(&token.issuer);
            actor.subject = self.name(&["subject", issuer, &actor.subject], now);
        }
        renamed
    }

    fn resource(&self, question: &mut QuestionFacts, now: SystemTime) {
        let Ok(entity_type) = EntityType::parse(&question.resource_type) else { return };
        if !self.ids.contains(&entity_type) {
            return;
        }
        if let Some(id) = &mut question.resource_id {
            *id = self.name(&["id", entity_type.as_str(), id], now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::text::MAX_TEXT;

    fn redaction_of(rules: &[(&str, RedactRule)], ids: &[&str]) -> Redaction {
        let attributes = rules.iter().map(|(name, rule)| match name.split_once('.').unwrap() {
            ("context", name) => (KeptValue::Context(name.to_owned()), *rule),
            (kind, name) => {
                let entity_type = EntityType::parse(kind).unwrap();
                (KeptValue::Attribute { entity_type, attribute: name.to_owned() }, *rule)
            }
        });
        let mut config = crate::audit::writer::tests::config(std::path::Path::new("unused"));
        config.attributes = attributes.collect();
        config.pseudonyms = Some(crate::config::PseudonymConfig {
            key: vec![7; 32].into(),
            rotate: std::time::Duration::from_secs(3600),
            ids: ids.iter().map(|name| EntityType::parse(name).unwrap()).collect(),
        });
        Redaction::new(&config)
    }

    fn redaction() -> Redaction {
        redaction_of(&[("User.tenant", RedactRule::Keep), ("context.channel", RedactRule::Keep)], &[])
    }

    fn at(hour: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_800_000_000 + 3600 * hour)
    }

    fn text(value: &str) -> RawValue {
        RawValue::Text(value.to_owned())
    }

    #[test]
    fn only_what_is_listed_for_that_place_is_copied() {
        let record: RawRecord =
            ["tenant", "channel", "email"].into_iter().map(|name| (name.to_owned(), text(name))).collect();
        let user = EntityType::parse("User").unwrap();
        let account = EntityType::parse("Account").unwrap();
        let table = [
            (Place::Principal(&user), vec![("principal.tenant".to_owned(), text("tenant"))], "listed for the type"),
            (Place::Resource(&user), vec![("resource.tenant".to_owned(), text("tenant"))], "a type is a type"),
            (Place::Resource(&account), vec![], "not listed for this type"),
            (Place::Context, vec![("context.channel".to_owned(), text("channel"))], "its own list"),
        ];
        for (place, expected, why) in table {
            assert_eq!(redaction().kept(place, &record, at(0)), expected, "{why}");
        }
        assert!(Redaction::default().kept(Place::Context, &record, at(0)).is_empty(), "an empty list keeps nothing");
    }

    #[test]
    fn a_listed_value_is_copied_within_bounds() {
        let nested = |levels: usize| (0..levels).fold(text("core"), |inner, _| RawValue::List(vec![inner]));
        let count = |value: &RawValue| if let RawValue::List(items) = value { items.len() } else { 0 };
        let kept = |value: RawValue| {
            let record = RawRecord::from_iter([("channel".to_owned(), value)]);
            redaction().kept(Place::Context, &record, at(0)).remove(0).1
        };
        assert_eq!(kept(nested(3)), nested(3), "four levels");
        assert_ne!(kept(nested(4)), nested(4), "five levels");
        let fits = RawValue::List(vec![RawValue::Bool(true); MAX_VALUES - 1]);
        assert_eq!(kept(fits.clone()), fits, "64 values, the list itself included");
        let past = kept(RawValue::List(vec![RawValue::Bool(true); 1000]));
        assert_eq!(count(&past), MAX_VALUES, "63 and the mark");
        assert_eq!(kept(text(&"x".repeat(MAX_TEXT))), text(&"x".repeat(MAX_TEXT)));
        assert_ne!(kept(text(&"x".repeat(MAX_TEXT + 1))), text(&"x".repeat(MAX_TEXT + 1)));
    }

    #[test]
    fn each_rule_does_what_it_says_and_nothing_passes_by_another_shape() {
        let kept = |rule: RedactRule, value: RawValue| {
            let record = RawRecord::from_iter([("x".to_owned(), value)]);
            redaction_of(&[("context.x", rule)], &[]).kept(Place::Context, &record, at(0)).pop().map(|(_, value)| value)
        };
        let integer = |number| RawValue::Integer(number);
        let list = |items: &[&str]| RawValue::List(items.iter().map(|item| text(item)).collect());
        let table = [
            (RedactRule::Drop, text("abc"), None, "left out"),
            (RedactRule::LastFour, text("NL91ABNA0417164300"), Some(text("..4300")), "the last four"),
            (RedactRule::LastFour, text("1234567"), Some(text("..")), "too short to show any of"),
            (RedactRule::LastFour, integer(123_456_789), Some(text("..6789")), "of a number too"),
            (RedactRule::LastFour, list(&["12345678", "abc"]), Some(list(&["..5678", ".."])), "of each"),
            (RedactRule::Truncate(3), text("abc"), Some(text("abc")), "fits"),
            (RedactRule::Truncate(3), text("abcd"), Some(text("abc..")), "one too long"),
            (RedactRule::Truncate(2), text("\u{20ac}\u{20ac}\u{20ac}"), Some(text("\u{20ac}\u{20ac}..")), "characters"),
            (RedactRule::Keep, RawValue::Bool(true), Some(RawValue::Bool(true)), "as it is"),
            (RedactRule::Hash, RawValue::Bool(true), Some(text("..")), "one of two is guessed"),
            (RedactRule::LastFour, RawValue::Bool(true), Some(text("..")), "has no four"),
            (RedactRule::Keep, integer(4_111_111_111_111_111), Some(text("[scrubbed]")), "a card"),
            (RedactRule::Keep, text("?token=abc"), Some(text("?token=[scrubbed]")), "the net"),
        ];
        for (rule, value, expected, why) in table {
            assert_eq!(kept(rule, value.clone()), expected, "{rule:?} of {value:?}: {why}");
        }
    }

    #[test]
    fn a_hash_is_the_same_in_one_period_and_tells_nothing_across_them() {
        let redaction = redaction_of(&[("User.email", RedactRule::Hash), ("User.name", RedactRule::Hash)], &["User"]);
        let user = EntityType::parse("User").unwrap();
        let hashes = |hour: u64| {
            let record = RawRecord::from_iter([("email".to_owned(), text("a@b")), ("name".to_owned(), text("a@b"))]);
            let kept = redaction.kept(Place::Principal(&user), &record, at(hour));
            kept.into_iter().map(|(_, value)| format!("{value:?}")).collect::<Vec<_>>()
        };
        let (now, again, later) = (hashes(0), hashes(0), hashes(1));
        assert_eq!(now, again);
        let all: BTreeSet<&String> = now.iter().chain(&later).collect();
        assert_eq!(all.len(), 4, "another attribute, another period: another hash: {all:?}");
        assert!(now.iter().all(|hash| hash.contains("hmac:500000:") && !hash.contains("a@b")), "{now:?}");
    }

    #[test]
    fn whoever_has_a_pseudonym_has_it_wherever_he_would_stand() {
        let redaction = redaction_of(&[], &["User"]);
        let uid = |kind: &str| EntityUid {
            entity_type: EntityType::parse(kind).unwrap(),
            id: EntityId::parse("alice@example.org", 256).unwrap(),
        };
        let base = crate::audit::record::tests::call(crate::audit::record::tests::decided(
            crate::audit::record::tests::allow(),
        ));
        let token = base.subject.token.clone().map(|token| {
            let actor = crate::token::Actor { subject: "alice@example.org".to_owned(), issuer: None };
            Arc::new(TokenFacts { subject: "alice@example.org".to_owned(), actors: vec![actor], ..(*token).clone() })
        });
        let question = base.question.clone().map(|asked| QuestionFacts {
            resource_type: "User".to_owned(),
            resource_id: Some("alice@example.org".to_owned()),
            ..asked
        });
        for principal in [Some(uid("User")), None] {
            let mut subject = SubjectFacts { principal, token: token.clone(), ..base.subject.clone() };
            let mut question = question.clone();
            redaction.rename(&mut subject, question.as_mut(), at(0));
            let shown = format!("{subject:?} {question:?}");
            assert!(!shown.contains("alice@example.org"), "{shown}");
            if let (Some(principal), Some(question)) = (&subject.principal, &question) {
                assert_eq!(Some(principal.id.as_str()), question.resource_id.as_deref(), "one person, one name");
            }
        }
        let mut subject = SubjectFacts { principal: Some(uid("Robot")), token: None, ..base.subject };
        redaction.rename(&mut subject, None, at(0));
        assert_eq!(subject.principal, Some(uid("Robot")), "whose type is not listed keeps his");
    }
}
