//! The house stands as DESIGN.md section 5 and docs/architecture.md draw it: who may import whom, and what is nowhere.
//! Reads the sources as text. Tests inside `src` may reach across; what is compiled into the service may not.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// The floors from the ground up. A room imports from floors below its own, and from its own folder.
const FLOORS: [&[&str]; 7] = [
    &["clock", "secret", "trust", "proto"],
    &["model"],
    &["config"],
    &["telemetry", "tls", "caller", "admission", "token", "policy", "cache", "revocation", "audit"],
    &["pdp", "admin"],
    &["grpc", "ops"],
    &["app", "cli", "main", "lib"],
];

/// The client library stands outside, with the services: it shares the words, the wire and the clock, and nothing else.
const CLIENT: (&str, &[&str]) = ("client", &["clock", "secret", "proto", "model"]);

/// Where one organ takes a type of another's: a proof, or facts that only a proof can give.
const PROOFS: [(&str, &str, &str); 8] = [
    ("caller", "tls::peer::{IdentityError, Peer}", "the other end of a connection, made by a handshake alone"),
    ("caller", "token::TokenFacts", "what a verified token said, to ask whether it is this caller's to present"),
    ("admission", "caller::Caller", "who asks, admitted: of whose share a place is taken"),
    ("audit", "token::Confirmation", "the name of the proof that a token demands, for the record"),
    ("policy", "token::TokenFacts", "what a verified token said, for `context.token`"),
    ("audit", "token::TokenFacts", "the same, for the record"),
    ("revocation", "token::TokenFacts", "the same: what is looked for on the list is what a verified token said"),
    (
        "cache",
        "policy::{AuthorizationRequest, Ruled}",
        "a checked question: the only thing a key is made of; and its ruling",
    ),
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn files(folder: &Path, ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path, ending));
        } else if path.extension().is_some_and(|extension| extension == ending) {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// A source file: its path below `src`, and its lines that are compiled into the service, numbered, without comments.
struct Source {
    path: String,
    lines: Vec<(usize, String)>,
}

impl Source {
    /// `token` for `token.rs` and everything in `token/`.
    fn room(&self) -> &str {
        self.path.split(['/', '.']).next().unwrap()
    }
}

/// What is compiled only for tests: the file, or the part of it, is left out.
fn sources() -> Vec<Source> {
    let src = root().join("src");
    let sources = files(&src, "rs").into_iter().filter_map(|file| {
        let path = file.strip_prefix(&src).unwrap().to_str().unwrap().to_owned();
        if path.ends_with("/tests.rs") || path == "tls/fixture.rs" {
            return None;
        }
        let text = std::fs::read_to_string(&file).unwrap();
        let service = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
        let lines = service.lines().enumerate().map(|(at, line)| (at + 1, line.to_owned()));
        Some(Source { path, lines: lines.filter(|(_, line)| !line.trim_start().starts_with("//")).collect() })
    });
    sources.collect()
}

/// Every `crate::..` of a file: the room it leads to, and all of it.
fn imports(source: &Source) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (number, line) in &source.lines {
        let mut rest = line.as_str();
        while let Some(at) = rest.find("crate::") {
            let before = rest[..at].chars().next_back();
            rest = &rest[at + "crate::".len()..];
            if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == '$') {
                continue;
            }
            let braced = rest.find('{').is_some_and(|brace| rest[..brace].ends_with("::"));
            let end = if braced { rest.find('}').map(|at| at + 1) } else { None };
            let end = end.or_else(|| rest.find(|c: char| !c.is_alphanumeric() && c != '_' && c != ':'));
            found.push((*number, rest[..end.unwrap_or(rest.len())].trim_end_matches(':').to_owned()));
        }
    }
    found
}

fn floor_of(room: &str) -> Option<usize> {
    FLOORS.iter().position(|rooms| rooms.contains(&room))
}

#[test]
fn a_file_imports_only_from_floors_below_and_organs_take_nothing_of_each_other_but_proofs() {
    let (mut wrong, mut used) = (Vec::new(), BTreeSet::new());
    for source in sources() {
        let room = source.room();
        for (number, import) in imports(&source) {
            let target = import.split("::").next().unwrap();
            if target == room {
                continue;
            }
            let fits = if room == CLIENT.0 {
                CLIENT.1.contains(&target)
            } else {
                let floor = floor_of(room).unwrap_or_else(|| panic!("{}: no floor has this room", source.path));
                let below = floor_of(target).is_some_and(|other| other < floor);
                // The house may know everyone, the client and its own floor included.
                let house = floor == FLOORS.len() - 1 && (floor_of(target) == Some(floor) || target == CLIENT.0);
                let proof = PROOFS.iter().find(|(organ, proof, _)| *organ == room && *proof == import);
                used.extend(proof.map(|(organ, proof, _)| (*organ, *proof)));
                below || house || proof.is_some()
            };
            if !fits {
                wrong.push(format!("src/{}:{number} imports `{import}`", source.path));
            }
        }
    }
    assert!(wrong.is_empty(), "not from below, and no proof:\n{}", wrong.join("\n"));
    for (organ, proof, why) in PROOFS {
        assert!(used.contains(&(organ, proof)), "`{organ}` does not take `{proof}` ({why}): strike it from the list");
    }
}

/// Whether `word` stands in a line, as a word or the beginning of a path.
fn says(line: &str, word: &str) -> bool {
    line.match_indices(word)
        .any(|(at, _)| !line[..at].chars().next_back().is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':'))
}

/// What stands nowhere but in the named places; the reason in the row.
#[test]
fn what_must_be_absent_is_absent() {
    let table: [(&[&str], &[&str], &str); 9] = [
        (&["cedar_policy", "cedar_policy_core"], &["policy.rs", "policy/"], "policies are known in one folder"),
        (
            &["tonic", "tonic_types", "tonic_health", "tonic_reflection"],
            &[
                "grpc.rs",
                "grpc/",
                "app.rs",
                "app/",
                "client.rs",
                "client/",
                "proto.rs",
                "proto/codec.rs",
                "cli/bench/",
                "cli/demo/",
                "cli/revoke.rs",
                "cli/revoke/",
                "audit/sinks/otlp.rs",
            ],
            "gRPC is known to its doors, to the house, and to who asks: the client, the demo, `gatepost bench`, `gatepost revoke`, and \
             the sink that hands records to a collector",
        ),
        (&["kafka_protocol"], &["audit/sinks/kafka.rs", "audit/sinks/kafka/"], "one sink speaks it"),
        (
            &["println!", "eprintln!", "print!", "eprint!", "dbg!"],
            &[],
            "results go through the console, logs through tracing",
        ),
        (&["SystemTime::now", "Instant::now"], &["clock.rs"], "time is passed in"),
        (&["lazy_static", "OnceLock", "LazyLock", "OnceCell"], &[], "no globals"),
        (&["jsonwebtoken"], &["token.rs", "token/", "cli/demo/world.rs"], "tokens are verified in one folder"),
        (&["Authorizer"], &["policy.rs"], "the public authorizer is the oracle of tests, never the path"),
        (&["env::var"], &["cli.rs", "cli/", "telemetry.rs"], "settings come in by one door; NO_COLOR is no setting"),
    ];
    let mut wrong = Vec::new();
    for source in sources() {
        for (number, line) in &source.lines {
            for (words, allowed, why) in table {
                let at_home = allowed.iter().any(|home| source.path == *home || source.path.starts_with(home));
                if !at_home && words.iter().any(|word| says(line, word) || says(line, &format!("std::{word}"))) {
                    wrong.push(format!("src/{}:{number} {}: {why}", source.path, line.trim()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// `model` is data: it does no I/O, waits for nothing, and knows neither the wire nor policies.
#[test]
fn the_model_imports_nothing_of_ours_and_touches_nothing() {
    let foreign =
        ["tokio", "tonic", "async ", "std::fs", "std::net::Tcp", "std::thread", "std::io", "tracing", "rustls"];
    for source in sources().iter().filter(|source| source.room() == "model") {
        for (_, import) in imports(source) {
            assert!(import.starts_with("model"), "src/{} imports `{import}`", source.path);
        }
        for (number, line) in &source.lines {
            let found = foreign.iter().find(|word| says(line, word));
            assert_eq!(found, None, "src/{}:{number} {}", source.path, line.trim());
        }
    }
}

/// THREATS V-INJ-1: no caller's text reaches a parser of policies, schemas, expressions or Cedar's JSON.
#[test]
fn only_files_of_a_bundle_reach_a_parser_of_policies() {
    let parsers = [
        "PolicySet::from_str",
        "PolicySet::from_cedar",
        "PolicySet = ",
        "parse::<cedar_policy",
        "parse_polic",
        "Policy::parse",
        "Policy::from_str",
        "Policy::from_json",
        "Template::parse",
        "Expression::",
        "RestrictedExpression::",
        "Schema::from_cedar",
        "SchemaFragment::from",
        "from_json_str",
        "from_json_value",
        "from_json_file",
        "EntityUid::from_str",
        "EntityUid::from_json",
        "EntityUID::from_normalized_str",
        "EntityUID::from_str",
        "EntityJsonParser",
        "ContextJsonParser",
    ];
    // Each stands before the files of a bundle and nothing else; whoever adds one says here what it reads.
    let known = [
        (
            "policy/bundle.rs",
            "let found: PolicySet = match text.parse() {",
            "a policy file, or a part, after the pre-flight",
        ),
        (
            "policy.rs",
            "file.text.parse::<cedar_policy::PolicySet>()",
            "files of a bundle that is loaded, for tests alone",
        ),
        ("policy/bundle.rs", "Entities::from_json_str(&file.text", "entities.json"),
        ("policy/schema.rs", "SchemaFragment::from_cedarschema_str(&file.text)", "a schema file"),
        ("policy/schema.rs", "SchemaFragment::from_json_value(whole)", "the same schema with its field actions"),
    ];
    let (mut wrong, mut seen) = (Vec::new(), BTreeSet::new());
    for source in sources() {
        for (index, (number, line)) in source.lines.iter().enumerate() {
            if !parsers.iter().any(|parser| line.contains(parser)) || line.trim_start().starts_with("use ") {
                continue;
            }
            let home = known.iter().find(|(path, text, _)| source.path == *path && line.contains(text));
            let built = source.lines[index.saturating_sub(3)..(index + 4).min(source.lines.len())]
                .iter()
                .any(|(_, near)| near.contains("format!(") && !near.contains("Problem"));
            match home {
                Some((path, text, _)) if !built => drop(seen.insert((*path, *text))),
                _ => wrong.push(format!("src/{}:{number} {}", source.path, line.trim())),
            }
        }
    }
    assert!(wrong.is_empty(), "a parser of policies where none was known:\n{}", wrong.join("\n"));
    for (path, text, what) in known {
        assert!(seen.contains(&(path, text)), "{path} does not read {what} with `{text}` any more: strike it");
    }
}

/// The pages people read: README, the changelog, and everything in docs/ and beside the examples.
fn pages() -> Vec<PathBuf> {
    let mut pages = files(&root().join("docs"), "md");
    for folder in ["examples", "helm", "policies", "benches"] {
        if root().join(folder).exists() {
            pages.extend(files(&root().join(folder), "md"));
        }
    }
    pages.extend([root().join("README.md"), root().join("CHANGELOG.md")]);
    pages.retain(|page| !page.to_string_lossy().contains("/target/"));
    pages
}

/// A heading as an anchor: lower case, without marks, spaces as dashes.
fn anchor(heading: &str) -> String {
    let kept = heading.trim().to_lowercase();
    let kept = kept.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

#[test]
fn every_link_leads_somewhere_and_no_page_knows_this_machine() {
    let mut wrong = Vec::new();
    for page in pages() {
        let text = std::fs::read_to_string(&page).unwrap();
        let name = page.strip_prefix(root()).unwrap().display();
        for word in [concat!("/wo", "rk/"), "/home/", "/Users/", "file://", concat!("GATEPOST_TO", "DO")] {
            if text.contains(word) {
                wrong.push(format!("{name}: names `{word}`"));
            }
        }
        // What stands in fences and code is no link.
        let prose = text.split("```").step_by(2).collect::<String>();
        let prose: String = prose.split('`').step_by(2).collect();
        for link in prose.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.starts_with("http://") || link.starts_with("https://") {
                continue;
            }
            let (file, place) = link.split_once('#').map_or((link, None), |(file, place)| (file, Some(place)));
            let target = if file.is_empty() { page.clone() } else { page.parent().unwrap().join(file) };
            if !target.exists() {
                wrong.push(format!("{name}: `{link}` leads nowhere"));
            } else if let Some(place) = place {
                let there = std::fs::read_to_string(&target).unwrap();
                let headings = there.lines().filter(|line| line.starts_with('#'));
                if !headings.map(|line| anchor(line.trim_start_matches('#'))).any(|found| found == place) {
                    wrong.push(format!("{name}: `{link}` has no such heading"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A page that names a test names one that exists: `tests/spec/x.rs` or `some_sentence_as_a_name`.
#[test]
fn every_test_that_a_page_names_exists() {
    let mut names = BTreeSet::new();
    for file in files(&root().join("src"), "rs").into_iter().chain(files(&root().join("tests"), "rs")) {
        let text = std::fs::read_to_string(file).unwrap();
        names.extend(text.lines().filter_map(|line| {
            let rest = line.trim_start().trim_start_matches("pub ").trim_start_matches("async ");
            Some(rest.strip_prefix("fn ")?.split(['(', '<']).next()?.to_owned())
        }));
    }
    // The chart and the image are tested in Python.
    for file in files(&root().join("tests"), "py") {
        let text = std::fs::read_to_string(file).unwrap();
        names.extend(text.lines().filter_map(|line| Some(line.strip_prefix("def ")?.split('(').next()?.to_owned())));
    }
    let mut wrong = Vec::new();
    for page in pages() {
        let text = std::fs::read_to_string(&page).unwrap();
        let prose = text.split("```").step_by(2).collect::<String>();
        for code in prose.split('`').skip(1).step_by(2) {
            let path = code.split(':').next().unwrap();
            let is_path = ["src/", "tests/", "docs/", "policies/", "examples/", "proto/", "helm/", "benches/"]
                .iter()
                .any(|folder| path.starts_with(folder));
            let is_sentence = code.matches('_').count() >= 4
                && !code.starts_with("gatepost_")
                && code.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
            // The page about policies names files of a bundle.
            let exists = root().join(path).exists() || root().join("policies").join(path).exists();
            if is_path && !path.contains(['*', '{', ' ', '<']) && !exists {
                wrong.push(format!("{}: there is no `{path}`", page.display()));
            }
            if is_sentence && !names.contains(code) {
                wrong.push(format!("{}: there is no test `{code}`", page.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
