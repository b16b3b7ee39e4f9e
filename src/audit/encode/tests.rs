//! Whatever stands in a record: one line in every form, nothing of it breaks out, and a reader gets it back.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::*;
use crate::audit::record::tests::{allow, call, decided, frame};
use crate::audit::text::is_unsafe;
use crate::audit::{CallEntry, CallerFacts, Entry, QuestionFacts};
use crate::model::entity::{EntityId, EntityType, EntityUid};

/// A call whose texts are all `text`.
fn record(text: &str) -> Value {
    let base = call(decided(allow()));
    let entry = CallEntry {
        caller: CallerFacts { name: Some(text.to_owned()), label: Some(text.to_owned()), ..base.caller.clone() },
        question: base.question.clone().map(|asked| QuestionFacts {
            action: text.to_owned(),
            resource_id: Some(text.to_owned()),
            ..asked
        }),
        subject: crate::audit::SubjectFacts {
            kind: Some("asserted"),
            principal: EntityId::parse(text, 4096)
                .ok()
                .map(|id| EntityUid { entity_type: EntityType::parse("User").unwrap(), id }),
            token: None,
            ..base.subject.clone()
        },
        ..base
    };
    let body = crate::audit::record::render(&Entry::Call(Box::new(entry)), &frame()).unwrap();
    let mut line = Vec::new();
    body.seal(7, crate::audit::format::Hash::GENESIS, &mut line);
    serde_json::from_slice(&line).unwrap()
}

/// The CEF of a record, taken apart: header parts, and values by key. Written from the format's description, not from
/// the code that writes.
fn parsed_cef(cef: &str) -> (Vec<String>, BTreeMap<String, String>) {
    let mut parts = vec![String::new()];
    let mut chars = cef.chars();
    while parts.len() < 8 {
        match chars.next().expect("seven bars") {
            '\\' => parts.last_mut().unwrap().push(chars.next().unwrap()),
            '|' => parts.push(String::new()),
            c => parts.last_mut().unwrap().push(c),
        }
    }
    let rest: String = chars.collect();
    // Where a key starts: a word and an unescaped `=`.
    let bytes: Vec<char> = rest.chars().collect();
    let mut signs = Vec::new();
    for (at, c) in bytes.iter().enumerate() {
        let slashes = bytes[..at].iter().rev().take_while(|c| **c == '\\').count();
        if *c == '=' && slashes % 2 == 0 {
            signs.push(at);
        }
    }
    let key_start = |sign: usize| bytes[..sign].iter().rposition(|c| *c == ' ').map_or(0, |space| space + 1);
    let mut values = BTreeMap::new();
    for (index, sign) in signs.iter().enumerate() {
        let end = signs.get(index + 1).map_or(bytes.len(), |next| key_start(*next) - 1);
        let mut value = String::new();
        let mut inside = bytes[sign + 1..end].iter();
        while let Some(c) = inside.next() {
            match c {
                '\\' => match inside.next().unwrap() {
                    'n' => value.push('\n'),
                    'r' => value.push('\r'),
                    c => value.push(*c),
                },
                c => value.push(*c),
            }
        }
        let key: String = bytes[key_start(*sign)..*sign].iter().collect();
        assert!(values.insert(key.clone(), value).is_none(), "{key} twice");
    }
    (parts, values)
}

/// A syslog line, taken apart by RFC 5424 section 6: header fields, parameters, message.
fn parsed_syslog(line: &str) -> (Vec<String>, BTreeMap<String, String>, String) {
    let (header, rest) = line.split_once('[').unwrap();
    let header: Vec<String> = header.trim_end().split(' ').map(str::to_owned).collect();
    let mut chars = rest.chars();
    let mut id = String::new();
    let mut parameters = BTreeMap::new();
    let mut name = String::new();
    loop {
        match chars.next().unwrap() {
            ']' => break,
            ' ' => name.clear(),
            '=' => {
                assert_eq!(chars.next(), Some('"'));
                let mut value = String::new();
                loop {
                    match chars.next().unwrap() {
                        '\\' => value.push(chars.next().unwrap()),
                        '"' => break,
                        c => value.push(c),
                    }
                }
                parameters.insert(name.clone(), value);
            }
            c if parameters.is_empty() && name.is_empty() && !id.contains('@') => id.push(c),
            c => name.push(c),
        }
    }
    assert_eq!(chars.next(), Some(' '));
    (header, parameters, chars.collect())
}

/// What a reader gets back of a text where JSON's own escapes can't be used.
fn visible(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '\n' | '\r' => out.push(c),
            c if is_unsafe(c) => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    out.push_str(&format!("\\u{unit:04x}"));
                }
            }
            c => out.push(c),
        }
    }
    out
}

fn holds(text: &str) {
    let record = record(text);
    let line = json(&record);
    let shown = record["actor"]["app_name"].as_str().unwrap().to_owned();
    for encoding in [Encoding::Ocsf, Encoding::Ecs, Encoding::Cef, Encoding::Rfc5424] {
        let encoded = String::from_utf8(encode(encoding, Some(&line), &record)).unwrap();
        assert!(!encoded.chars().any(is_unsafe), "{text:?} in {}: {encoded:?}", encoding.as_str());
        match encoding {
            Encoding::Ocsf => assert_eq!(encoded.as_bytes(), line, "byte for byte"),
            Encoding::Ecs => {
                let ecs: Value = serde_json::from_str(&encoded).unwrap();
                assert_eq!(ecs["gatepost"]["caller"]["name"], shown.as_str());
                assert_eq!(ecs["event"]["action"], record["api"]["operation"]);
                assert_eq!(ecs["gatepost"]["resource"]["id"], record["resources"][0]["uid"]);
            }
            Encoding::Cef => {
                let (header, values) = parsed_cef(&encoded);
                assert_eq!((header.len(), header[0].as_str()), (8, "CEF:0"), "{encoded}");
                assert_eq!(values["sourceServiceName"], visible(&shown), "{encoded}");
                assert_eq!(values["gatepostAction"], visible(record["api"]["operation"].as_str().unwrap()));
            }
            Encoding::Rfc5424 => {
                let (header, parameters, message) = parsed_syslog(&encoded);
                assert_eq!(header.len(), 6, "{encoded}");
                assert_eq!(message.as_bytes(), line);
                assert_eq!(parameters["uid"], record["metadata"]["uid"].as_str().unwrap());
                if !shown.chars().any(is_unsafe) {
                    assert_eq!(parameters["caller"], shown, "{encoded}");
                }
            }
        }
    }
}

fn corpus() -> Option<PathBuf> {
    let folder = std::env::var_os("GATEPOST_CONFORMANCE")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/conformance"), PathBuf::from);
    if folder.is_dir() {
        return Some(folder);
    }
    assert!(std::env::var_os("CI").is_none(), "{} is missing", folder.display());
    println!("SKIPPED: no naughty strings in {}", folder.display());
    None
}

/// THREATS T11: naughty strings, and every byte.
#[test]
fn no_text_breaks_out_of_any_form() {
    let mut texts: Vec<String> = (0..=255_u8).map(|byte| format!("a{}b", char::from(byte))).collect();
    texts.extend((0..=255_u8).map(|byte| String::from_utf8_lossy(&[b'a', byte, b'b']).into_owned()));
    let ours = [
        "|",
        "\\",
        "=",
        "a=b|c\\",
        " suser=root",
        "\n CEF:0|x|x|x|x|x|1|",
        "\"] <0>1 - - - - - -",
        "]",
        "\\n",
        "\u{202e}x",
    ];
    texts.extend(ours.map(str::to_owned));
    if let Some(folder) = corpus() {
        let blns = std::fs::read_to_string(folder.join("blns/blns.json")).unwrap();
        texts.extend(serde_json::from_str::<Vec<String>>(&blns).unwrap());
        for entry in std::fs::read_dir(folder.join("fuzz-strings")).unwrap() {
            let bytes = std::fs::read(entry.unwrap().path()).unwrap();
            texts.extend(String::from_utf8_lossy(&bytes).lines().map(str::to_owned));
        }
    }
    for text in &texts {
        holds(text);
    }
    println!("{} texts in 4 forms", texts.len());
}

#[test]
fn every_fact_of_a_decision_is_in_ecs() {
    let record = record("orders");
    let ecs: Value = serde_json::from_slice(&encode(Encoding::Ecs, None, &record)).unwrap();
    let table = [
        ("/@timestamp", "/time_dt"),
        ("/event/id", "/metadata/uid"),
        ("/event/sequence", "/metadata/sequence"),
        ("/event/dataset", "/metadata/log_name"),
        ("/event/code", "/status_code"),
        ("/user/id", "/actor/user/uid"),
        ("/source/ip", "/src_endpoint/ip"),
        ("/destination/port", "/dst_endpoint/port"),
        ("/host/hostname", "/device/hostname"),
        ("/gatepost/decision_id", "/metadata/original_event_uid"),
        ("/gatepost/decision", "/unmapped/gatepost/decision"),
        ("/gatepost/policy_version", "/policy/version"),
        ("/gatepost/determining_policies", "/unmapped/gatepost/determining_policies"),
        ("/gatepost/principal", "/unmapped/gatepost/principal"),
        ("/gatepost/cache", "/unmapped/gatepost/cache"),
        ("/gatepost/boot", "/unmapped/gatepost/boot"),
        ("/gatepost/hash", "/unmapped/gatepost/hash"),
        ("/gatepost/prev_hash", "/unmapped/gatepost/prev_hash"),
    ];
    for (there, here) in table {
        let (there_value, here_value) = (ecs.pointer(there), record.pointer(here));
        assert!(there_value.is_some() && there_value == here_value, "{there}: {there_value:?}, {here}: {here_value:?}");
    }
    assert_eq!((&ecs["event"]["outcome"], &ecs["event"]["type"]), (&json!("success"), &json!(["access", "allowed"])));
    assert_eq!(encode(Encoding::Ecs, None, &record).get(..14), Some(&b"{\"@timestamp\":"[..]));
}

#[test]
fn what_a_mask_took_out_is_in_no_form() {
    let mut record = record("needle");
    for path in ["/actor", "/api", "/activity_name", "/resources", "/src_endpoint", "/unmapped/gatepost"] {
        *record.pointer_mut(path).unwrap() = json!({});
    }
    for encoding in [Encoding::Ocsf, Encoding::Ecs, Encoding::Cef, Encoding::Rfc5424] {
        let encoded = String::from_utf8(encode(encoding, None, &record)).unwrap();
        assert!(!encoded.contains("needle"), "{}: {encoded}", encoding.as_str());
    }
}
