//! The schema: read from text, with the field actions derived from its annotations, and turned into type tables.
//!
//! For a base action `Account.read` marked `@fields("read")`, every leaf attribute of its resource types gets the action
//! `Account.read:email`. Leaves annotated `@read("basic")` put theirs into the group `Account.read#basic`; leaves below a
//! record put theirs into the subtree group `Account.read:address.*`, which a policy has to name. Nothing that is not
//! annotated is in any group, so a new field leaks nowhere. The base action is no parent of these, nor the reverse.

use std::collections::{BTreeMap, BTreeSet};

use cedar_policy::{Schema, SchemaFragment};
use serde_json::{Map, Value as Json, json};

use super::report::{Problem, SourceFile};
use crate::model::field_path::FieldPath;

/// Fields that one action may have at most.
const MAX_FIELDS: usize = 1024;

/// What a base action's fields are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FieldKind {
    /// `@fields("read")`: masks filter by default.
    Read,
    /// `@fields("write")`: masks are strict by default.
    Write,
}

/// The fields of one base action.
#[derive(Debug, Clone)]
pub struct FieldActions {
    /// Reading or writing.
    pub kind: FieldKind,
    /// By resource type (its full name): the leaf paths, each with the id of its derived action.
    pub by_resource: BTreeMap<String, Vec<DerivedField>>,
}

/// One derived field action.
#[derive(Debug, Clone)]
pub struct DerivedField {
    /// The leaf's path.
    pub path: FieldPath,
    /// The derived action's id: `Account.read:email`.
    pub action_id: String,
}

/// A schema with its derived actions.
#[derive(Debug)]
pub struct DerivedSchema {
    /// Ready for the validator.
    pub schema: Schema,
    /// By namespace (empty for none) and action id.
    pub fields: BTreeMap<(String, String), FieldActions>,
    /// How many actions were derived, groups included.
    pub derived: usize,
}

/// Reads the schema files of a bundle and derives the field actions.
///
/// # Errors
/// Every problem found, by file and position where there is one.
pub fn derive(files: &[SourceFile]) -> Result<DerivedSchema, Vec<Problem>> {
    let mut problems = Vec::new();
    let mut namespaces: BTreeMap<String, Map<String, Json>> = BTreeMap::new();
    for file in files {
        match SchemaFragment::from_cedarschema_str(&file.text) {
            Ok((fragment, _)) => match fragment.to_json_value() {
                Ok(Json::Object(spaces)) => merge(&mut namespaces, spaces, file, &mut problems),
                Ok(_) | Err(_) => problems.push(Problem::whole(file, "the schema can't be taken apart")),
            },
            Err(error) => problems.push(Problem::from_diagnostic(file, &error)),
        }
    }
    if files.is_empty() {
        problems.push(Problem::bare("*.cedarschema", "the bundle has no schema").help("add a `.cedarschema` file"));
    }
    if !problems.is_empty() {
        return Err(problems);
    }

    let owner = |text: &str| files.iter().find(|file| file.text.contains(text)).or(files.first());
    let mut deriver = Deriver { namespaces: &namespaces, problems: Vec::new() };
    let mut fields = BTreeMap::new();
    let mut derived: BTreeMap<String, Map<String, Json>> = BTreeMap::new();
    for (namespace, content) in &namespaces {
        let Some(Json::Object(actions)) = content.get("actions") else { continue };
        for (id, action) in actions {
            if id.contains([':', '#']) {
                deriver.problem(
                    id,
                    "an action's name can't hold `:` or `#`: they mark the actions that are derived from annotations",
                );
            }
            let Some(kind) = annotation(action, "fields") else { continue };
            let kind = match kind {
                "read" => FieldKind::Read,
                "write" => FieldKind::Write,
                _ => {
                    deriver.problem(id, "`@fields` must be \"read\" or \"write\"");
                    continue;
                }
            };
            let (actions, found) = deriver.derive_action(namespace, id, action, kind);
            derived.entry(namespace.clone()).or_default().extend(actions);
            fields.insert((namespace.clone(), id.clone()), FieldActions { kind, by_resource: found });
        }
    }
    let problems: Vec<Problem> = deriver
        .problems
        .iter()
        .map(|(name, message)| match owner(name) {
            Some(file) => Problem::at_text(file, name, message),
            None => Problem::bare("*.cedarschema", message),
        })
        .collect();
    if !problems.is_empty() {
        return Err(problems);
    }

    let count = derived.values().map(Map::len).sum();
    for (namespace, actions) in derived {
        let content = namespaces.entry(namespace).or_default();
        if let Some(Json::Object(existing)) = content.get_mut("actions") {
            existing.extend(actions);
        }
    }
    let whole = Json::Object(namespaces.into_iter().map(|(name, content)| (name, Json::Object(content))).collect());
    let schema = SchemaFragment::from_json_value(whole)
        .and_then(|fragment| Schema::from_schema_fragments([fragment]))
        .map_err(|error| match files.first() {
            Some(file) => vec![Problem::from_diagnostic(file, &error)],
            None => vec![Problem::bare("*.cedarschema", &error.to_string())],
        })?;
    Ok(DerivedSchema { schema, fields, derived: count })
}

/// Lays one file's namespaces over those of the others; nothing may be declared twice.
fn merge(
    all: &mut BTreeMap<String, Map<String, Json>>,
    spaces: Map<String, Json>,
    file: &SourceFile,
    problems: &mut Vec<Problem>,
) {
    for (namespace, content) in spaces {
        let Json::Object(content) = content else { continue };
        let target = all.entry(namespace).or_default();
        for (section, declared) in content {
            match (target.get_mut(&section), declared) {
                (Some(Json::Object(existing)), Json::Object(declared)) => {
                    for (name, declaration) in declared {
                        if existing.insert(name.clone(), declaration).is_some() {
                            problems.push(Problem::at_text(file, &name, "is declared in two files of the bundle"));
                        }
                    }
                }
                (_, declared) => {
                    target.insert(section, declared);
                }
            }
        }
    }
}

fn annotation<'j>(declaration: &'j Json, name: &str) -> Option<&'j str> {
    declaration.get("annotations")?.get(name)?.as_str()
}

/// The last segment of the last derived path: what to point at in the file.
fn known_name(derived: &[DerivedField]) -> String {
    derived.last().and_then(|field| field.path.segments().last()).unwrap_or_default().to_owned()
}

/// A leaf attribute and what its annotations say.
struct Leaf<'j> {
    path: FieldPath,
    read: Option<&'j str>,
    write: Option<&'j str>,
}

struct Deriver<'j> {
    namespaces: &'j BTreeMap<String, Map<String, Json>>,
    /// The name to point at, and what is wrong.
    problems: Vec<(String, String)>,
}

impl<'j> Deriver<'j> {
    fn problem(&mut self, name: &str, message: &str) {
        self.problems.push((name.to_owned(), message.to_owned()));
    }

    /// The derived actions of one base action, and the fields by resource type.
    fn derive_action(
        &mut self,
        namespace: &str,
        id: &str,
        action: &'j Json,
        kind: FieldKind,
    ) -> (Map<String, Json>, BTreeMap<String, Vec<DerivedField>>) {
        let mut actions = Map::new();
        let mut found = BTreeMap::new();
        let applies_to = action.get("appliesTo").cloned().unwrap_or_default();
        let resource_types: Vec<&str> = action
            .get("appliesTo")
            .and_then(|applies_to| applies_to.get("resourceTypes")?.as_array())
            .into_iter()
            .flatten()
            .filter_map(Json::as_str)
            .collect();
        if resource_types.is_empty() {
            self.problem(id, "is marked `@fields`, which needs an action that applies to a resource");
        }

        // path -> (its groups, the resource types that have it)
        let mut fields: BTreeMap<FieldPath, (BTreeSet<String>, Vec<&str>)> = BTreeMap::new();
        for written in resource_types {
            let Some((full, declaration)) = self.resolve(namespace, written, "entityTypes") else { continue };
            let home = full.rsplit_once("::").map_or("", |(home, _)| home).to_owned();
            let mut leaves = Vec::new();
            if let Some(shape) = declaration.get("shape") {
                self.leaves(&home, shape, &mut Vec::new(), &mut leaves);
            }
            if leaves.len() > MAX_FIELDS {
                self.problem(id, "has more than 1024 fields");
                leaves.truncate(MAX_FIELDS);
            }
            let mut derived = Vec::with_capacity(leaves.len());
            for leaf in leaves {
                let groups = match kind {
                    FieldKind::Read => leaf.read,
                    FieldKind::Write => leaf.write,
                };
                let groups: BTreeSet<String> =
                    groups.into_iter().flat_map(|g| g.split(',')).map(|g| format!("{id}#{}", g.trim())).collect();
                derived.push(DerivedField { path: leaf.path.clone(), action_id: format!("{id}:{}", leaf.path) });
                let (known, types) = fields.entry(leaf.path).or_insert_with(|| (groups.clone(), Vec::new()));
                if *known != groups {
                    // One derived action serves all the types, so the laxer annotation would win for the stricter type.
                    let last = known_name(&derived);
                    self.problem(&last, "is annotated differently in two resource types of one action: annotate both alike, or give each type an action of its own");
                }
                types.push(written);
            }
            derived.sort_by(|a, b| a.path.cmp(&b.path));
            found.insert(full, derived);
        }
        for (path, (mut groups, types)) in fields {
            let mut subtree = String::new();
            for segment in path.segments() {
                if !subtree.is_empty() {
                    groups.insert(format!("{id}:{subtree}.*"));
                    subtree.push('.');
                }
                subtree.push_str(segment);
            }
            let mut applies = applies_to.clone();
            if let Some(applies) = applies.as_object_mut() {
                applies.insert("resourceTypes".to_owned(), json!(types));
            }
            let members: Vec<Json> = groups.iter().map(|group| json!({ "id": group })).collect();
            for group in groups {
                actions.insert(group, json!({}));
            }
            actions.insert(format!("{id}:{path}"), json!({ "appliesTo": applies, "memberOf": members }));
        }
        (actions, found)
    }

    /// Walks a record and collects its leaves.
    fn leaves(&mut self, home: &str, shape: &'j Json, path: &mut Vec<&'j str>, into: &mut Vec<Leaf<'j>>) {
        let Some((home, attributes)) = self.record_of(home, shape) else { return };
        let home = home.as_str();
        for (name, declaration) in attributes {
            path.push(name);
            let text = path.join(".");
            let read = self.groups(&text, declaration, "read");
            let write = self.groups(&text, declaration, "write");
            let nested = self.record_of(home, declaration).is_some_and(|(_, inner)| !inner.is_empty());
            if nested {
                if read.is_some() || write.is_some() {
                    self.problem(
                        name,
                        "is a record: annotate its attributes (an annotation here would cover every future one too), or grant the subtree by name in a policy",
                    );
                }
                self.leaves(home, declaration, path, into);
            } else {
                // An attribute called `address.city` is not the city of an address.
                match FieldPath::parse(&text).ok().filter(|parsed| parsed.segments().count() == path.len()) {
                    Some(parsed) => into.push(Leaf { path: parsed, read, write }),
                    None if read.is_some() || write.is_some() => {
                        self.problem(name, "is annotated as a field, but its path is not made of identifiers, so no field mask can name it");
                    }
                    None => {}
                }
            }
            path.pop();
        }
    }

    /// The attributes of a record type, through common types, and the namespace that the names in it are relative to.
    fn record_of(&self, home: &str, declaration: &'j Json) -> Option<(String, &'j Map<String, Json>)> {
        let (mut home, mut declaration) = (home.to_owned(), declaration);
        // Common types can't be recursive, but a malformed fragment must not hang us.
        for _ in 0..64 {
            let name = match declaration.get("type").and_then(Json::as_str)? {
                "Record" => return Some((home, declaration.get("attributes").and_then(Json::as_object)?)),
                "EntityOrCommon" => declaration.get("name").and_then(Json::as_str)?,
                name => name,
            };
            let (full, found) = self.resolve(&home, name, "commonTypes")?;
            (home, declaration) = (full.rsplit_once("::").map_or("", |(home, _)| home).to_owned(), found);
        }
        None
    }

    /// Finds a declaration as Cedar does: in the namespace it is written in, else as a full name.
    fn resolve(&self, home: &str, written: &str, section: &str) -> Option<(String, &'j Json)> {
        let find = |namespace: &str, name: &str| self.namespaces.get(namespace)?.get(section)?.get(name);
        match written.rsplit_once("::") {
            Some((namespace, name)) => find(namespace, name).map(|found| (written.to_owned(), found)),
            None => {
                if let Some(found) = find(home, written) {
                    let full = if home.is_empty() { written.to_owned() } else { format!("{home}::{written}") };
                    return Some((full, found));
                }
                find("", written).map(|found| (written.to_owned(), found))
            }
        }
    }

    fn groups(&mut self, path: &str, declaration: &'j Json, name: &str) -> Option<&'j str> {
        let text = annotation(declaration, name)?;
        let fits = |group: &str| {
            !group.is_empty() && group.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
        };
        if !text.split(',').map(str::trim).all(fits) {
            let last = path.rsplit('.').next().unwrap_or(path);
            self.problem(
                last,
                &format!("`@{name}` must be group names (letters, digits, `_`, `-`) separated by commas"),
            );
            return None;
        }
        Some(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> Vec<SourceFile> {
        vec![SourceFile { name: "t.cedarschema".into(), text: text.into() }]
    }

    const ACCOUNT: &str = r#"
        type Addr = { @read("basic,pii") @write("self") city?: String, zip?: String };
        entity User;
        entity Account = { owner: User, @read("basic") email?: String, address?: Addr, tags?: Set<String> };
        @fields("read") action "Account.read" appliesTo { principal: User, resource: Account };
        @fields("write") action "Account.update" appliesTo { principal: User, resource: Account };
    "#;

    #[test]
    fn every_leaf_gets_an_action_and_only_annotated_ones_a_group() {
        let derived = derive(&file(ACCOUNT)).unwrap();
        let read = &derived.fields[&(String::new(), "Account.read".to_owned())];
        let paths: Vec<&str> = read.by_resource["Account"].iter().map(|f| f.path.as_str()).collect();
        assert_eq!(paths, ["address.city", "address.zip", "email", "owner", "tags"]);
        let actions: BTreeSet<String> = derived.schema.actions().map(ToString::to_string).collect();
        for expected in [
            "Action::\"Account.read:email\"",
            "Action::\"Account.read#basic\"",
            "Action::\"Account.read#pii\"",
            "Action::\"Account.read:address.*\"",
            "Action::\"Account.update#self\"",
            "Action::\"Account.update:owner\"",
        ] {
            assert!(actions.contains(expected), "{expected}");
        }
        assert!(!actions.contains("Action::\"Account.update#basic\""), "a read group is no write group");
        let groups = derived.schema.action_entities().unwrap();
        let member = |action: &str, group: &str| {
            let uid = |id: &str| format!("Action::\"{id}\"").parse().unwrap();
            groups.is_ancestor_of(&uid(group), &uid(action))
        };
        assert!(member("Account.read:address.city", "Account.read#pii"));
        assert!(member("Account.read:address.zip", "Account.read:address.*"));
        assert!(!member("Account.read:address.zip", "Account.read#basic"), "unannotated");
        assert!(!member("Account.read:owner", "Account.read"), "the base action is no parent");
    }

    #[test]
    fn what_can_not_be_meant_is_refused_with_its_place() {
        let table = [
            (
                "entity U; entity A = { @read(\"b\") r?: { x?: Long } };\n@fields(\"read\") action a appliesTo { principal: U, resource: A };",
                "is a record",
            ),
            (
                "entity U; entity A = { x?: Long };\n@fields(\"rite\") action a appliesTo { principal: U, resource: A };",
                "`@fields` must be",
            ),
            (
                "entity U; entity A = { @read(\"b c\") x?: Long };\n@fields(\"read\") action a appliesTo { principal: U, resource: A };",
                "group names",
            ),
            (
                "entity U; entity A = { x?: Long };\naction \"a:x\" appliesTo { principal: U, resource: A };",
                "can't hold",
            ),
            (
                "entity U; entity A = { @read(\"b\") \"x y\"?: Long };\n@fields(\"read\") action a appliesTo { principal: U, resource: A };",
                "identifiers",
            ),
            (
                "entity U; entity A = { @read(\"b\") \"x.y\"?: Long };\n@fields(\"read\") action a appliesTo { principal: U, resource: A };",
                "identifiers",
            ),
            ("entity U; @fields(\"read\") action g;", "which needs an action that applies"),
            (
                "entity U; entity A = { @read(\"b\") x?: Long }; entity B = { x?: Long };\n@fields(\"read\") action a appliesTo { principal: U, resource: [A, B] };",
                "annotated differently",
            ),
        ];
        for (text, expected) in table {
            let problems = derive(&file(text)).unwrap_err();
            assert!(problems.iter().any(|p| p.message.contains(expected) && p.line > 0), "{expected}: {problems:?}");
        }
    }

    #[test]
    fn common_types_and_namespaces_are_followed() {
        let text = r#"namespace Shop {
            type Money = { @read("basic") amount: Long };
            entity User; entity Order = { total: Money };
            @fields("read") action "Order.read" appliesTo { principal: User, resource: Order };
        }"#;
        let derived = derive(&file(text)).unwrap();
        let read = &derived.fields[&("Shop".to_owned(), "Order.read".to_owned())];
        assert_eq!(read.by_resource["Shop::Order"][0].action_id, "Order.read:total.amount");

        // Names in a type are relative to where it is declared; a record that is not recognised would be one field,
        // future subfields included.
        let text = r#"namespace Common { type Geo = { lat: Long, lon: Long }; type Place = { geo: Geo }; }
        namespace Shop {
            entity User; entity Order = { at: Common::Place };
            @fields("read") action "Order.read" appliesTo { principal: User, resource: Order };
        }"#;
        let derived = derive(&file(text)).unwrap();
        let read = &derived.fields[&("Shop".to_owned(), "Order.read".to_owned())];
        let paths: Vec<&str> = read.by_resource["Shop::Order"].iter().map(|f| f.path.as_str()).collect();
        assert_eq!(paths, ["at.geo.lat", "at.geo.lon"]);
    }
}
