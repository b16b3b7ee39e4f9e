//! Bundles of any size: documents in folders, users and roles.
//!
//! Of ten policies one forbids and one is a rule about attributes that no scope narrows down; the others name a document, a
//! user, a role or a folder. Users and folders grow with the bundle: what a policy names is named by few others.

use std::fmt::Write as _;

use gatepost::policy::SourceFile;

/// The fields of each kind of document. What comes first is what the first ten policies are about.
pub const KINDS: [usize; 3] = [20, 5, 100];
/// Users at most.
pub const USERS: usize = 1000;

/// One type of document for each of [`KINDS`], `D20`, and an action to read it, `D20.read`.
pub fn schema() -> SourceFile {
    let mut text = "entity Role; entity User in [Role] = { level: Long }; entity Folder; entity Service;\n".to_owned();
    for fields in KINDS {
        let members: String = (0..fields)
            .map(|at| format!("@read(\"{}\") f{at:03}?: String, ", if at % 2 == 0 { "basic" } else { "pii" }))
            .collect();
        let _ = writeln!(
            text,
            "entity D{fields} in [Folder] = {{ owner: User, {members} }};
             @fields(\"read\") action \"D{fields}.read\" appliesTo {{ principal: User, resource: D{fields}, context: {{ mfa: Bool }} }};"
        );
    }
    SourceFile { name: "bench.cedarschema".to_owned(), text }
}

/// So many policies, in files that no limit minds.
pub fn policies(count: usize) -> Vec<SourceFile> {
    let mut files = Vec::new();
    let mut text = String::new();
    for number in 0..count {
        let kind = KINDS.iter().cycle().nth((number / 10) % 3).copied().unwrap_or_default();
        let _ = writeln!(text, "@id(\"p{number}\") {}", policy(number, kind, count));
        if number % 2000 == 1999 || number + 1 == count {
            files.push(SourceFile { name: format!("p{number}.cedar"), text: std::mem::take(&mut text) });
        }
    }
    files
}

/// How many folders a bundle of so many policies speaks of: `f0` and on.
pub fn folders(policies: usize) -> usize {
    (policies / 10).max(1)
}

fn policy(number: usize, kind: usize, policies: usize) -> String {
    let actions = format!("action in [Action::\"D{kind}.read\", Action::\"D{kind}.read#basic\"]");
    let pii = format!("action in Action::\"D{kind}.read#pii\"");
    let (user, folder) = (number % USERS.min(policies), number / 10);
    match number % 10 {
        // The same dozen however large the bundle: rules that no scope narrows down cost every ruling something.
        0 if number < 30 => {
            format!("permit (principal, {actions}, resource is D{kind}) when {{ resource.owner == principal }};")
        }
        0 => format!(
            "permit (principal in Role::\"r{folder}\", {actions}, resource in Folder::\"f{folder}\") when {{ principal.level > 2 }};"
        ),
        1 if number < 30 => format!("forbid (principal, {pii}, resource is D{kind}) when {{ !context.mfa }};"),
        1 => format!("forbid (principal == User::\"u{user}\", {pii}, resource is D{kind});"),
        2 | 3 => format!("permit (principal, {actions}, resource == D{kind}::\"d{number}\");"),
        4 | 5 => format!("permit (principal == User::\"u{user}\", {actions}, resource in Folder::\"f{folder}\");"),
        6 => format!("permit (principal in Role::\"r{folder}\", {pii}, resource is D{kind});"),
        7 => format!(
            "permit (principal is User in Role::\"r{folder}\", {actions}, resource is D{kind}) when {{ principal.level > 1 }};"
        ),
        8 => format!("permit (principal, {pii}, resource in Folder::\"f{folder}\");"),
        _ => format!("permit (principal, {pii}, resource is D{kind} in Folder::\"f{folder}\") when {{ context.mfa }};"),
    }
}
