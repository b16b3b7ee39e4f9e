//! A start that can't be: one clear message that names the file, the key and the mend, the right exit code, and nothing
//! left of it.

use std::net::TcpStream;

use rcgen::{CertificateParams, KeyPair};
use serde_json::json;

use crate::replicas::free_port;
use crate::support::authority::host;
use crate::support::ground::{Ground, HOUR, authority, leaf, now};
use crate::support::trail;

/// The command line, the settings, and what they name.
const WRONG: i32 = 64;
/// Policies.
const POLICIES: i32 = 65;
/// What is needed is not there.
const AWAY: i32 = 69;

/// What an encrypted key begins with: PKCS#8, and the older way.
const ENCRYPTED: [&str; 2] = [
    "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIHsMFcGCSqGSIb3DQEFDTBKMCkGCSqGSIb3\n-----END ENCRYPTED PRIVATE KEY-----\n",
    "-----BEGIN EC PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,00\n\nMIHs\n-----END EC PRIVATE KEY-----\n",
];

type Row = (&'static str, fn(&mut Ground), i32, &'static [&'static str]);

/// Issue 5, "Bad input".
const ROWS: &[Row] = &[
    (
        "a key file that is not there",
        |ground| std::fs::remove_file(ground.path("server.key")).unwrap(),
        WRONG,
        &["gatepost.yaml:1", "server.private_key", "does not exist", "name a PEM file"],
    ),
    (
        "a certificate that is not there",
        |ground| std::fs::remove_file(ground.path("server.pem")).unwrap(),
        WRONG,
        &["server.certificate", "does not exist", "name a PEM file"],
    ),
    (
        "a key file that this user may not read",
        |ground| {
            ground.mode("server.key", 0o000);
            ground.asked_by_nobody();
        },
        WRONG,
        &["server.private_key", "may not be read by this user", "`chown`"],
    ),
    (
        "an expired certificate, or a clock that is ahead",
        |ground| drop(ground.certificate("server", |leaf| leaf.not_after = (now() - HOUR / 2).into())),
        WRONG,
        &["server.pem", "has expired", "it was good until 20", "and here it is 20", "a renewed one", "clock"],
    ),
    (
        "a certificate of the future, or a clock that is an hour behind",
        |ground| drop(ground.certificate("server", |leaf| leaf.not_before = (now() + HOUR).into())),
        WRONG,
        &["server.pem", "is not valid yet", "it is good from 20", "and here it is 20", "clock (NTP)"],
    ),
    (
        "a key of another certificate",
        |ground| ground.write("server.key", &KeyPair::generate().unwrap().serialize_pem()),
        WRONG,
        &["server.key", "does not belong to the first certificate in", "server.pem", "replace both together"],
    ),
    (
        "a key behind a passphrase",
        |ground| ground.write("server.key", ENCRYPTED[0]),
        WRONG,
        &["server.key", "is encrypted", "openssl pkey -in"],
    ),
    (
        "a key behind a passphrase, the older way",
        |ground| ground.write("server.key", ENCRYPTED[1]),
        WRONG,
        &["server.key", "is encrypted", "openssl pkey -in"],
    ),
    (
        "rubbish in a key's place",
        |ground| ground.write("server.key", "rubbish"),
        WRONG,
        &["server.key", "does not hold a usable private key", "unencrypted PKCS#8"],
    ),
    (
        "a certificate for another name than the settings demand",
        |ground| {
            ground.certificate("server", |leaf| leaf.subject_alt_names = vec![host("elsewhere.shop.svc")]);
            ground.settings["server"]["names"] = json!(["gatepost.shop.svc"]);
        },
        WRONG,
        &["server.pem", "is not for `gatepost.shop.svc`", "`server.names`", "it is for elsewhere.shop.svc"],
    ),
    (
        "a leaf among the authorities",
        |ground| {
            let (certificate, _) = leaf(&ground.authority, |_| ());
            ground.write("ca.pem", &certificate);
        },
        WRONG,
        &["ca.pem", "does not hold authorities", "CA:TRUE"],
    ),
    (
        "an expired certificate of the admin listener",
        |ground| {
            ground.certificate("admin", |leaf| leaf.not_after = (now() - HOUR).into());
            ground.settings["admin"] = json!({
                "listen": "127.0.0.1:0", "certificate": "admin.pem", "private_key": "admin.key", "client_ca": "ca.pem",
                "operators": [{ "name": "ops", "spiffe_id": "spiffe://shop.example/ops", "may": ["ListRevocations"] }],
            });
        },
        WRONG,
        &["the admin listener", "admin.pem", "has expired"],
    ),
    (
        "an unknown key",
        |ground| ground.settings["server"]["lisen"] = json!("127.0.0.1:8443"),
        WRONG,
        &["gatepost.yaml:1", "server.lisen", "is not a known key", "did you mean `listen`?"],
    ),
    (
        "a value out of range",
        |ground| ground.settings["limits"] = json!({ "batch_items": 0 }),
        WRONG,
        &["gatepost.yaml:1", "limits.batch_items", "must be 1 to 10000"],
    ),
    (
        "keys of an issuer that are none",
        |ground| ground.write("jwks.json", "rubbish"),
        WRONG,
        &["https://idp.shop.example", "JWKS"],
    ),
    (
        "API keys that are none",
        |ground| {
            ground.write("apikeys.json", "rubbish");
            ground.settings["api_keys"] = json!({ "file": "apikeys.json", "principal_type": "Role" });
        },
        WRONG,
        &["apikeys.json:1", "`gatepost apikey`"],
    ),
    (
        "a key for checkpoints behind a passphrase",
        |ground| {
            ground.write("checkpoint.key", ENCRYPTED[0]);
            ground.settings["audit"]["checkpoints"] = json!({ "key_file": "checkpoint.key" });
        },
        WRONG,
        &["checkpoint.key", "is encrypted", "`gatepost audit key`"],
    ),
    (
        "authorities of a sink that are none",
        |ground| {
            ground.write("sink.pem", "rubbish");
            ground.settings["audit"]["sinks"] =
                json!([{ "name": "siem", "syslog": { "host": "127.0.0.1", "ca": "sink.pem" } }]);
        },
        WRONG,
        &["`siem`", "`ca`"],
    ),
    (
        "a broken policy",
        |ground| ground.write("policies/order.cedar", "permit (principal, action, resour"),
        POLICIES,
        &["the policies can't be used", "order.cedar:1:"],
    ),
    (
        "a port in use",
        |ground| ground.settings["server"]["listen"] = json!(taken()),
        AWAY,
        &["can't listen on 127.0.0.1:", "`server.listen`", "another process listens there", "take another port"],
    ),
    (
        "a port in use for operators' looks",
        |ground| ground.settings["server"]["ops_listen"] = json!(taken()),
        AWAY,
        &["can't listen on 127.0.0.1:", "`server.ops_listen`", "another process listens there"],
    ),
    (
        "a port in use for the admin listener",
        |ground| {
            ground.settings["admin"] = json!({
                "listen": taken(), "certificate": "server.pem", "private_key": "server.key", "client_ca": "ca.pem",
                "operators": [{ "name": "ops", "spiffe_id": "spiffe://shop.example/ops", "may": ["ListRevocations"] }],
            });
        },
        AWAY,
        &["can't listen on 127.0.0.1:", "`admin.listen`", "another process listens there"],
    ),
    (
        "an address of another machine",
        |ground| ground.settings["server"]["listen"] = json!("192.0.2.1:8443"),
        AWAY,
        &["can't listen on 192.0.2.1:8443", "`server.listen`", "no interface of this machine has that address"],
    ),
    (
        "a folder for records that may not be written",
        |ground| {
            std::fs::create_dir(ground.path("audit")).unwrap();
            ground.mode("audit", 0o500);
            ground.asked_by_nobody();
        },
        AWAY,
        &["records can't be written", "audit/lock: Permission denied", "`audit.spool.directory`", "`chown`"],
    ),
    (
        "a revocation file in a folder that may not be written",
        |ground| {
            std::fs::create_dir(ground.path("revoked")).unwrap();
            ground.mode("revoked", 0o500);
            ground.asked_by_nobody();
            ground.settings["revocation"] = json!({ "file": "revoked/list" });
        },
        AWAY,
        &["revoked/list", "check that it and its folder may be read and written"],
    ),
];

/// A port that somebody has, for as long as this process is there.
fn taken() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::mem::forget(listener);
    address
}

#[test]
fn bad_input_ends_the_start_with_one_message_the_right_code_and_nothing_left() {
    let mut wrong = Vec::new();
    for (why, plant, code, words) in ROWS {
        let mut ground = Ground::new();
        let ports = [free_port(), free_port()];
        ground.settings["server"]["listen"] = json!(ports[0]);
        ground.settings["server"]["ops_listen"] = json!(ports[1]);
        plant(&mut ground);
        let output = ground.run("serve", &[]);
        let told = String::from_utf8(output.stderr).unwrap();
        let checks = [
            (output.status.code() == Some(*code), "the exit code"),
            (words.iter().all(|word| told.contains(*word)), "what is wrong, where, and the mend"),
            (told.matches("gatepost: ").count() == 1, "one message"),
            (!told.contains("MIHs") && !told.contains("rubbish"), "nothing of a file's content"),
            (output.stdout.is_empty(), "nothing on standard output"),
            (ports.iter().all(|port| TcpStream::connect(port).is_err()), "nobody listens"),
            (!trail(&ground.path("audit")).contains("\"class_uid\":6002"), "no start is on record"),
        ];
        let failed: Vec<&str> = checks.iter().filter(|(holds, _)| !holds).map(|(_, what)| *what).collect();
        if !failed.is_empty() {
            wrong.push(format!("{why}: {failed:?}, {:?}: {told}", output.status.code()));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), ROWS.len(), wrong.join("\n"));
    println!("{} ways to start it wrongly, each told and none half done", ROWS.len());
}

#[test]
fn a_wrong_command_line_is_told_with_exit_code_64_and_help_is_no_mistake() {
    let run = |arguments: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_gatepost"));
        command.args(arguments).env_remove("GATEPOST_CONFIG").output().unwrap()
    };
    for arguments in
        [&["serve"][..], &["doctor", "--no-such-flag"], &["config"], &["serve", "--config", "a", "--set", "b"]]
    {
        let output = run(arguments);
        assert_eq!(output.status.code(), Some(WRONG), "{arguments:?}");
        assert!(!output.stderr.is_empty() && output.stdout.is_empty());
    }
    assert_eq!(run(&["doctor", "--help"]).status.code(), Some(0));
    assert_eq!(run(&["--version"]).status.code(), Some(0));
}

/// An authority that has expired still parses, so the start goes on; nobody it vouches for is let in. That is `doctor`'s
/// to tell.
#[test]
fn what_starts_with_warnings_starts() {
    let ground = Ground::new();
    let expired = |params: &mut CertificateParams| params.not_after = (now() - HOUR).into();
    let (_, pem) = authority("expired", &KeyPair::generate().unwrap(), expired);
    ground.write("ca.pem", &pem);
    let output = ground.run("serve", &["--check"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
}
