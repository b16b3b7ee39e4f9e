//! What a bundle may hold: the traps that Cedar leaves open are shut at load, each told by file, line and mend.

use std::time::SystemTime;

use gatepost::model::decision::Decision;
use gatepost::model::entity::{RawEntity, RawRecord, RawValue};
use gatepost::model::question::{FieldQuery, FieldSelection, Question, Resource};
use gatepost::policy::{Bundle, BundleFiles, BundleOptions, BundleReport, SourceFile, SubjectData};

use crate::properties::uid;

const SCHEMA: &str = "entity Group; entity User in [Group] = { level: Long, boss?: User };
entity Doc = { owner: User, note?: String };
@fields(\"read\") action read appliesTo { principal: User, resource: Doc, context: { now?: datetime } };
action write appliesTo { principal: User, resource: Doc, context: {} };";

fn load(schema: &str, policies: &str, entities: Option<&str>, level: u32) -> Result<Bundle, BundleReport> {
    let file = |name: &str, text: &str| SourceFile { name: name.to_owned(), text: text.to_owned() };
    let files = BundleFiles {
        schemas: vec![file("t.cedarschema", schema)],
        policies: vec![file("t.cedar", policies)],
        entities: entities.map(|text| file("entities.json", text)),
    };
    Bundle::compile(files, &BundleOptions { validation_level: level, ..BundleOptions::default() })
}

#[test]
fn what_would_fail_open_is_refused_at_load_with_its_place() {
    let deep = format!(
        "@id(\"p\") forbid (principal, action, resource) when {{ {}true{} }};",
        "!(".repeat(70),
        ")".repeat(70)
    );
    let nested = format!(
        "@id(\"p\") forbid (principal, action, resource) when {{ {}true{} }};",
        "(".repeat(500),
        ")".repeat(500)
    );
    let unknown =
        r#"[{"uid":{"type":"User","id":"a"},"attrs":{"level":{"__extn":{"fn":"unknown","arg":"z"}}},"parents":[]}]"#;
    let cycle = r#"[{"uid":{"type":"Group","id":"a"},"attrs":{},"parents":[{"type":"Group","id":"b"}]},
                    {"uid":{"type":"Group","id":"b"},"attrs":{},"parents":[{"type":"Group","id":"a"}]}]"#;
    let table = [
        (SCHEMA, deep.as_str(), None, "t.cedar:1:", "nests deeper", "ENGINE 8.3: a deep forbid is skipped"),
        (
            SCHEMA,
            nested.as_str(),
            None,
            "t.cedar:1:",
            "brackets deep",
            "ENGINE 8.1: the parser would abort the process",
        ),
        (
            SCHEMA,
            "permit (principal, action == Action::\"read\", resource);",
            None,
            "t.cedar:1:1",
            "@id",
            "nobody could name it",
        ),
        (
            SCHEMA,
            "@id(\"\") permit (principal, action == Action::\"read\", resource);",
            None,
            "t.cedar:1:1",
            "@id",
            "an empty name",
        ),
        (
            SCHEMA,
            "@id(\"p\") permit (principal, action == Action::\"read\", resource);\n@id(\"p\") forbid (principal, action == Action::\"read\", resource);",
            None,
            "t.cedar:2:1",
            "another policy",
            "ENGINE 8.8: two of one name",
        ),
        (
            SCHEMA,
            "@id(\"p\") permit (principal, action, resource);",
            None,
            "t.cedar:1:1",
            "future one",
            "T25: every field, new ones too",
        ),
        (
            SCHEMA,
            "@id(\"p\") @unrestricted(\" \") permit (principal, action, resource);",
            None,
            "t.cedar:1:",
            "future one",
            "no reason given",
        ),
        (
            SCHEMA,
            "@id(\"p\") permit (principal == ?principal, action == Action::\"read\", resource);",
            None,
            "t.cedar:1:",
            "template",
            "nothing fills its slot",
        ),
        (
            SCHEMA,
            "@id(\"p\") permit (principal, action == Action::\"raed\", resource);",
            None,
            "t.cedar:1:",
            "did you mean",
            "a typo in an action",
        ),
        (
            SCHEMA,
            "@id(\"p\") permit (principal, action == Action::\"read:nte\", resource);",
            None,
            "t.cedar:1:",
            "did you mean",
            "a typo in a field",
        ),
        (
            SCHEMA,
            "@id(\"p\") permit (principal, action == Action::\"read\", resource) when { resource.note == \"x\" };",
            None,
            "t.cedar:1:",
            "note",
            "an optional attribute without a guard",
        ),
        (
            SCHEMA,
            "@id(\"p\") permit (principal, action == Action::\"read\", resource) when { resource.owner.level > 1 };",
            None,
            "t.cedar:1:",
            "level",
            "two steps into data that nobody has to send",
        ),
        (SCHEMA, "", Some(unknown), "entities.json", "", "ENGINE 8.2: unknown() switches a forbid off"),
        (SCHEMA, "", Some(cycle), "entities.json", "", "ENGINE 8.6: a group above itself"),
        (
            SCHEMA,
            "",
            Some(r#"[{"uid":{"type":"User","id":"a"},"attrs":{},"parents":[]}]"#),
            "entities.json",
            "level",
            "missing attribute",
        ),
        (
            SCHEMA,
            "",
            Some(r#"[{"uid":{"type":"User","id":"a"},"attrs":{"level":1,"x":2},"parents":[]}]"#),
            "entities.json",
            "x",
            "undeclared attribute",
        ),
        (
            SCHEMA,
            "",
            Some(r#"[{"uid":{"type":"Action","id":"read"},"attrs":{},"parents":[{"type":"Action","id":"write"}]}]"#),
            "entities.json",
            "",
            "a forged action",
        ),
        (SCHEMA, "", Some("{"), "entities.json", "", "no JSON"),
        ("entity", "", None, "t.cedarschema:1:", "", "no schema"),
        (
            "entity User; action a appliesTo { principal: User, resource: User, context: { now: Long } };",
            "",
            None,
            "t.cedarschema:1:",
            "datetime",
            "Gatepost supplies the time",
        ),
        (
            "entity User; action a appliesTo { principal: User, resource: User, context: { caller: User } };",
            "",
            None,
            "t.cedarschema:1:",
            "calling workload",
            "and the caller",
        ),
        (
            "entity User; action a appliesTo { principal: User, resource: User, context: { token: { password: String } } };",
            "",
            None,
            "t.cedarschema:1:",
            "token",
            "and what the token said",
        ),
        (
            "entity User; action a appliesTo { principal: User, resource: User, context: { token: { actor: User } } };",
            "",
            None,
            "t.cedarschema:1:",
            "actor (String)",
            "who acts is told by name: no entity of ours",
        ),
        (
            "entity User; action a appliesTo { principal: User, resource: User, context: { token: { sender_constrained: String } } };",
            "",
            None,
            "t.cedarschema:1:",
            "sender_constrained (Bool)",
            "a token is bound or is not",
        ),
    ];
    for (schema, policies, entities, place, message, why) in table {
        let told = load(schema, policies, entities, 1).map(drop).unwrap_err().to_string();
        assert!(told.starts_with(place) && told.contains(message), "{why}:\n{told}");
    }
}

#[test]
fn what_is_wanted_and_said_so_loads() {
    let table = [
        ("@id(\"p\") @unrestricted(\"break glass\") permit (principal, action, resource);", 1, "a reason is given"),
        ("@id(\"p\") forbid (principal, action, resource);", 1, "a forbid may cover everything"),
        (
            "@id(\"p\") permit (principal, action == Action::\"read\", resource) when { resource.owner.level > 1 };",
            2,
            "level 2 is opted into",
        ),
        (
            "@id(\"p\") permit (principal, action in [Action::\"read\", Action::\"read:note\"], resource);",
            1,
            "a field by its name",
        ),
    ];
    for (policies, level, why) in table {
        assert!(load(SCHEMA, policies, None, level).is_ok(), "{why}");
    }
}

#[test]
fn every_problem_of_a_bundle_is_told_at_once() {
    let policies = "permit (principal, action == Action::\"read\", resource);\n@id(\"a\") permit (principal, action, resource);\n@id(\"a\") forbid (principal, action, resource);";
    let told = load(SCHEMA, policies, None, 1).map(drop).unwrap_err();
    let lines: Vec<usize> = told.problems.iter().map(|problem| problem.line).collect();
    assert_eq!(lines, [1, 2, 3], "{told}");
}

/// DESIGN section 2: a new field leaks nowhere, for reading and for writing.
#[test]
fn a_new_field_is_in_no_mask_until_somebody_classifies_it() {
    let schema = |fields: &str| {
        format!(
            "entity User = {{}}; entity Doc = {{ {fields} }};
             @fields(\"read\") action read appliesTo {{ principal: User, resource: Doc }};
             @fields(\"write\") action write appliesTo {{ principal: User, resource: Doc }};"
        )
    };
    let policies = "@id(\"r\") permit (principal, action in [Action::\"read\", Action::\"read#basic\"], resource);
                    @id(\"w\") permit (principal, action in [Action::\"write\", Action::\"write#basic\"], resource);";
    let mask = |fields: &str, action: &str| {
        let bundle = load(&schema(fields), policies, None, 1).unwrap();
        let principal = RawEntity { uid: uid("User", "u"), attributes: RawRecord::new(), parents: Vec::new() };
        let doc = uid("Doc", "d");
        let question = Question {
            action: action.to_owned(),
            resource: Resource {
                entity_type: doc.entity_type,
                id: Some(doc.id),
                attributes: RawRecord::new(),
                parents: Vec::new(),
            },
            fields: Some(FieldQuery {
                selection: FieldSelection::All,
                mode: Some(gatepost::model::question::FieldMode::Filter),
            }),
            context: RawRecord::new(),
            entities: [].into(),
            bypass_cache: true,
        };
        let request = bundle.request(
            &SubjectData { principal: principal.into(), token: None, caller: None },
            &question,
            SystemTime::UNIX_EPOCH,
        );
        let ruling = bundle.rule(&request.unwrap());
        assert_eq!(ruling.decision, Decision::Allow);
        ruling.fields.as_ref().unwrap().iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let old = "@read(\"basic\") @write(\"basic\") title?: String";
    for action in ["read", "write"] {
        assert_eq!(mask(old, action), ["title"]);
        assert_eq!(mask(&format!("{old}, fresh?: String"), action), ["title"], "not classified");
        assert_eq!(
            mask(&format!("{old}, @read(\"pii\") @write(\"pii\") fresh?: String"), action),
            ["title"],
            "in a group nobody granted"
        );
    }
    assert_eq!(mask(&format!("{old}, @read(\"basic\") fresh?: String"), "read"), ["fresh", "title"]);
    assert_eq!(
        mask(&format!("{old}, @read(\"basic\") fresh?: String"), "write"),
        ["title"],
        "readable is not writable"
    );
}

/// DESIGN section 4: what Gatepost knows enters the context only where it is declared, and no caller can supply it.
#[test]
fn nobody_but_gatepost_tells_the_policies_the_time() {
    let policies = "@id(\"p\") permit (principal, action == Action::\"read\", resource) when { context has now && context.now < datetime(\"2026-01-01\") };";
    let bundle = load(SCHEMA, policies, None, 1).unwrap();
    let attributes = RawRecord::from_iter([("level".to_owned(), RawValue::Integer(1))]);
    let subject = SubjectData {
        principal: RawEntity { uid: uid("User", "u"), attributes, parents: Vec::new() }.into(),
        token: None,
        caller: None,
    };
    let owner = RawValue::Record(
        [("type".to_owned(), RawValue::Text("User".into())), ("id".to_owned(), RawValue::Text("u".into()))]
            .into_iter()
            .collect(),
    );
    let doc = uid("Doc", "d");
    let mut question = Question {
        action: "read".to_owned(),
        resource: Resource {
            entity_type: doc.entity_type,
            id: Some(doc.id),
            attributes: RawRecord::from_iter([("owner".to_owned(), owner)]),
            parents: Vec::new(),
        },
        fields: None,
        context: RawRecord::new(),
        entities: [].into(),
        bypass_cache: true,
    };
    let at = |seconds: u64| SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
    let decide = |question: &Question, now| bundle.rule(&bundle.request(&subject, question, now).unwrap()).decision;
    assert_eq!(decide(&question, at(1_767_225_599)), Decision::Allow, "the last second of 2025");
    assert_eq!(decide(&question, at(1_767_225_600)), Decision::Deny);
    question.context.insert("now".to_owned(), RawValue::Text("2020-01-01".into()));
    assert!(bundle.request(&subject, &question, at(1_767_225_600)).is_err(), "a caller does not set the clock");
}

/// Cedar takes a hundred times a file's size to parse it, so large files go in parts. Where a part ends must not matter: not to
/// what is commented out, not to strings that hold what ends a policy, and not to the places that are told.
#[test]
fn a_large_file_is_read_in_parts_and_told_of_as_a_whole() {
    let mut text = String::new();
    let mut lines = Vec::new();
    for number in 0..3000 {
        text += match number % 5 {
            0 => "// @id(\"ghost\") permit (principal, action == Action::\"write\", resource);\n",
            1 => "//;\n// \" ;\n",
            2 => "/////// \r// @id(\"ghost\") forbid (principal, action, resource);\n",
            3 => "\n\n",
            _ => "// it's \"said;\n",
        };
        lines.push(text.matches('\n').count() + 1);
        text += &format!("@id(\"p{number}\") ");
        text += match number % 3 {
            0 => "@why(\"because;\n of @id('ghost');\n\") permit (principal, action == Action::\"read\", resource);\n",
            1 => "permit (principal, action == Action::\"read\", resource) // when ;\n when { principal.level > 2 };\n",
            _ => "forbid (principal, action == Action::\"read\", resource) when { principal.level < 0 }; // ;\n",
        };
    }
    assert!(text.len() > 300_000, "of many parts: {}", text.len());
    let bundle = load(SCHEMA, &text, None, 1).unwrap();
    let told: Vec<_> = bundle.policies().iter().map(|policy| (policy.id.clone(), policy.line)).collect();
    let expected: Vec<_> = lines.iter().enumerate().map(|(number, line)| (format!("p{number}"), *line)).collect();
    assert_eq!(told, expected);

    let last = text.matches('\n').count() + 1;
    for (wrong, what) in [
        ("@id(\"q\") permit (principal, action == Action::\"read\", resource) when { principal.size > 2 };", "size"),
        (
            "@id(\"q\") permit (principal, action == Action::\"read\", resource) when { principal. };",
            "unexpected token",
        ),
        ("permit (principal, action == Action::\"read\", resource);", "@id"),
        ("@id(\"p7\") permit (principal, action == Action::\"read\", resource);", "is the id of another policy"),
        ("@id(\"q\") permit (principal == ?principal, action == Action::\"read\", resource);", "is a template"),
    ] {
        let report = load(SCHEMA, &format!("{text}{wrong}\n"), None, 1).unwrap_err().to_string();
        let place = format!("t.cedar:{last}:");
        assert!(report.contains(&place) && report.contains(what), "{what}: {report}");
        assert!(!report.contains("t.cedar:1:"), "{report}");
    }
}
