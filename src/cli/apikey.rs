//! `gatepost apikey`: makes, lists and revokes the API keys of a file. Needs no server; one that runs notices by itself.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand};
use comfy_table::{ContentArrangement, Table, presets};
use ipnet::IpNet;
use jiff::Timestamp;
use serde::Serialize;

use super::{complain, exit};
use crate::clock::{SystemClock, unix_seconds};
use crate::config::Limits;
use crate::config::load::{Source, load};
use crate::secret::ExposeSecret as _;
use crate::token::api_key::file::{ApiKeyEntry, ApiKeyFile, ApiKeyFileError, SecretHash, canonical};
use crate::token::api_key::text::{KeyText, NoRandomness, new_key};

/// The longest life of a key: what nobody has looked at for three years should stop working.
const LONGEST: Duration = Duration::from_secs(3 * 366 * 24 * 3600);

/// Make, list and revoke API keys.
#[derive(Debug, Args)]
#[command(after_long_help = "\
API keys are for machines that can't get a token. The file holds what each key's secret hashes to, never the key; the key \
itself is printed once, by `new`. A running server takes a changed file within a second. In the configuration, \
`api_keys.file` names the file, and `callers[].presents_api_keys` says which services may present keys.

    gatepost apikey new --file apikeys.json --owner nightly-export --expires 90d --scope orders:read
    gatepost apikey list --file apikeys.json
    gatepost apikey revoke --config gatepost.yaml 0123456789abcdef")]
pub struct ApiKeyArgs {
    #[command(subcommand)]
    command: ApiKeyCommand,
}

#[derive(Debug, Subcommand)]
enum ApiKeyCommand {
    /// Make a key and print it, this once
    New(NewArgs),
    /// List the keys, without their secrets
    List(ListArgs),
    /// Revoke a key, for good
    Revoke(RevokeArgs),
}

/// Where the keys are.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct PlaceArgs {
    /// The file of API keys; `new` makes it
    #[arg(long, short, value_name = "FILE")]
    file: Option<PathBuf>,
    /// The configuration file, whose `api_keys.file` it is
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(after_long_help = "\
The key goes to standard output, everything else to standard error:

    gatepost apikey new -f apikeys.json --owner nightly-export --expires 90d > key.txt
    gatepost apikey new -f apikeys.json --owner billing --expires 2027-03-31T00:00:00Z \\
        --scope orders:read --scope orders:list --network 10.20.0.0/16 --note 'ticket 4711'

Exit codes: 0 made, 64 the configuration is wrong, 65 the file or a value is wrong.")]
struct NewArgs {
    #[command(flatten)]
    place: PlaceArgs,
    /// Whose it is: the id of the principal that policies see
    #[arg(long, value_name = "ID")]
    owner: String,
    /// When it ends: a time from now (`12h`, `90d`, `52w`) or a date and time (`2027-03-31T00:00:00Z`)
    #[arg(long, value_name = "WHEN", value_parser = Expiry::parse)]
    expires: Expiry,
    /// What policies see in `context.token.scopes`; may be given many times
    #[arg(long = "scope", value_name = "SCOPE")]
    scopes: Vec<String>,
    /// A network it may be used from; may be given many times, without it the key works from anywhere
    #[arg(long = "network", value_name = "CIDR", value_parser = network)]
    networks: Vec<IpNet>,
    /// A word for people: what it is for, who asked for it
    #[arg(long, value_name = "TEXT")]
    note: Option<String>,
}

#[derive(Debug, Args)]
struct ListArgs {
    #[command(flatten)]
    place: PlaceArgs,
    /// How the list looks
    #[arg(long, value_enum, default_value_t = ListFormat::Human)]
    format: ListFormat,
}

#[derive(Debug, Args)]
#[command(after_long_help = "\
The id is the part of a key between the underscores; `list` and the records have it too.

    gatepost apikey revoke -f apikeys.json 0123456789abcdef

Exit codes: 0 revoked (now or before), 1 there is no such key, 64 the configuration is wrong, 65 the file is wrong.")]
struct RevokeArgs {
    #[command(flatten)]
    place: PlaceArgs,
    /// The key's id: 16 hex digits
    id: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum ListFormat {
    /// For people: a table
    Human,
    /// For machines: a list of objects
    Json,
}

/// When a key ends, as it was written.
#[derive(Debug, Clone, Copy)]
enum Expiry {
    After(Duration),
    At(Timestamp),
}

/// Why nothing was done.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error(transparent)]
    File(#[from] ApiKeyFileError),
    #[error(transparent)]
    Random(#[from] NoRandomness),
    #[error("`--expires` must be in the future, and at most three years from now")]
    Expiry,
    #[error("there is no key with that id")]
    NoSuchKey,
}

impl Refused {
    fn exit_code(&self) -> u8 {
        match self {
            Self::File(_) | Self::Expiry => exit::DATA,
            Self::Random(_) => exit::SOFTWARE,
            Self::NoSuchKey => 1,
        }
    }
}

/// Runs the command. The exit code is one of [`exit`]'s, or 1 when there is no such key.
///
/// # Errors
/// The console's own.
pub fn run(args: &ApiKeyArgs, console: &mut impl Write) -> io::Result<u8> {
    let place = match &args.command {
        ApiKeyCommand::New(NewArgs { place, .. })
        | ApiKeyCommand::List(ListArgs { place, .. })
        | ApiKeyCommand::Revoke(RevokeArgs { place, .. }) => place,
    };
    let Some((file, limits)) = place.find() else { return Ok(exit::CONFIGURATION) };
    let seconds = i64::try_from(unix_seconds(SystemClock::shared().now())).unwrap_or(i64::MAX);
    let now = Timestamp::from_second(seconds).map_err(io::Error::other)?;
    let done = match &args.command {
        ApiKeyCommand::New(args) => make(args, &file, &limits, now),
        ApiKeyCommand::List(args) => ApiKeyFile::read(&file, &limits)
            .map_err(Refused::from)
            .and_then(|keys| Ok(Output::list(&keys.keys, args.format, now)?)),
        ApiKeyCommand::Revoke(args) => revoke(&args.id, &file, &limits, now),
    };
    match done {
        Ok(output) => {
            console.write_all(output.result.as_bytes())?;
            console.flush()?;
            output.remarks.iter().for_each(|remark| complain(remark));
            Ok(0)
        }
        Err(refused) => {
            complain(&refused.to_string());
            Ok(refused.exit_code())
        }
    }
}

impl PlaceArgs {
    /// The file, and the limits that hold for it; nothing after the configuration's mistakes have been told.
    fn find(&self) -> Option<(PathBuf, Limits)> {
        let Some(path) = &self.config else { return Some((self.file.clone()?, Limits::default())) };
        match load(&Source::file(path)) {
            Ok(config) => match config.api_keys {
                Some(keys) => Some((keys.file, config.limits)),
                None => {
                    complain(&format!("{}: api_keys.file: is missing; name the file of API keys", path.display()));
                    None
                }
            },
            Err(report) => {
                complain(&format!("the configuration can't be used:\n{report}"));
                None
            }
        }
    }
}

/// What goes to standard output, and what is said besides.
struct Output {
    result: zeroize::Zeroizing<String>,
    remarks: Vec<String>,
}

fn make(args: &NewArgs, file: &Path, limits: &Limits, now: Timestamp) -> Result<Output, Refused> {
    let expires = args.expires.after(now).ok_or(Refused::Expiry)?;
    let (key, id) = ApiKeyFile::change(file, limits, true, |keys| {
        let (key, id, hash) = loop {
            let key = new_key()?;
            let text = KeyText::parse(key.expose_secret()).ok_or(NoRandomness)?;
            let (id, hash) = (text.id().to_owned(), text.secret_sha256());
            // 64 random bits do not meet by chance, but two keys of one id would be a mess.
            if !keys.keys.iter().any(|known| known.id == id) {
                break (key, id, hash);
            }
        };
        keys.keys.push(ApiKeyEntry {
            id: id.clone(),
            secret_sha256: SecretHash(hash),
            owner: args.owner.clone(),
            created: now,
            expires,
            scopes: args.scopes.iter().cloned().collect(),
            networks: args.networks.clone(),
            note: args.note.clone(),
            revoked: None,
        });
        Ok::<_, Refused>((key, id))
    })?;
    let remarks = vec![
        format!("made key {id} of `{}`, good until {expires}", args.owner),
        "the key is shown this once and stored nowhere: keep it where secrets are kept".to_owned(),
    ];
    Ok(Output { result: zeroize::Zeroizing::new(format!("{}\n", key.expose_secret())), remarks })
}

fn revoke(id: &str, file: &Path, limits: &Limits, now: Timestamp) -> Result<Output, Refused> {
    let before = ApiKeyFile::change(file, limits, false, |keys| {
        let key = keys.keys.iter_mut().find(|key| key.id == id).ok_or(Refused::NoSuchKey)?;
        Ok::<_, Refused>(key.revoked.replace(key.revoked.unwrap_or(now)))
    })?;
    let remark = match before {
        None => format!("revoked key {id}"),
        Some(then) => format!("key {id} was revoked before, at {then}"),
    };
    Ok(Output { result: zeroize::Zeroizing::default(), remarks: vec![remark] })
}

impl Output {
    fn list(keys: &[ApiKeyEntry], format: ListFormat, now: Timestamp) -> Result<Self, ApiKeyFileError> {
        let result = match format {
            ListFormat::Human => table(keys, now),
            ListFormat::Json => json(keys, now),
        };
        Ok(Self { result: zeroize::Zeroizing::new(result), remarks: Vec::new() })
    }
}

fn state(key: &ApiKeyEntry, now: Timestamp) -> &'static str {
    match key.revoked {
        Some(_) => "revoked",
        None if key.expires <= now => "expired",
        None => "good",
    }
}

fn table(keys: &[ApiKeyEntry], now: Timestamp) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(["ID", "OWNER", "STATE", "EXPIRES", "SCOPES", "NETWORKS", "NOTE"]);
    for key in keys {
        let networks: Vec<String> = key.networks.iter().map(ToString::to_string).collect();
        let scopes: Vec<&str> = key.scopes.iter().map(String::as_str).collect();
        table.add_row([
            key.id.clone(),
            key.owner.clone(),
            state(key, now).to_owned(),
            key.expires.to_string(),
            scopes.join(" "),
            networks.join(" "),
            key.note.clone().unwrap_or_default(),
        ]);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let lines: Vec<String> = table.lines().map(|line| line.trim_end().to_owned()).collect();
    format!("{}\n", lines.join("\n"))
}

fn json(keys: &[ApiKeyEntry], now: Timestamp) -> String {
    #[derive(Serialize)]
    struct Line<'k> {
        id: &'k str,
        owner: &'k str,
        state: &'static str,
        created: Timestamp,
        expires: Timestamp,
        revoked: Option<Timestamp>,
        scopes: &'k BTreeSet<String>,
        networks: &'k [IpNet],
        note: Option<&'k str>,
    }
    let lines: Vec<Line<'_>> = keys
        .iter()
        .map(|key| Line {
            id: &key.id,
            owner: &key.owner,
            state: state(key, now),
            created: key.created,
            expires: key.expires,
            revoked: key.revoked,
            scopes: &key.scopes,
            networks: &key.networks,
            note: key.note.as_deref(),
        })
        .collect();
    format!("{}\n", serde_json::to_string_pretty(&lines).unwrap_or_default())
}

impl Expiry {
    fn parse(text: &str) -> Result<Self, String> {
        let after = text.split_at_checked(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
        let seconds = after.and_then(|(number, unit)| {
            let unit = match unit {
                "m" => 60,
                "h" => 3600,
                "d" => 24 * 3600,
                "w" => 7 * 24 * 3600,
                _ => return None,
            };
            number.parse::<u64>().ok()?.checked_mul(unit)
        });
        match seconds {
            Some(seconds) => Ok(Self::After(Duration::from_secs(seconds))),
            None => text.parse().map(Self::At).map_err(|_| {
                "must be a time from now (`12h`, `90d`, `52w`) or a date and time (`2027-03-31T00:00:00Z`)".to_owned()
            }),
        }
    }

    /// The end of a key that is made at `now`; nothing when it would be over already, or too far away.
    fn after(self, now: Timestamp) -> Option<Timestamp> {
        let end = match self {
            Self::After(lifetime) => now.checked_add(lifetime).ok()?,
            Self::At(end) => end,
        };
        let latest = now.checked_add(LONGEST).ok()?;
        (now < end && end <= latest).then_some(end)
    }
}

/// A network, or one address.
fn network(text: &str) -> Result<IpNet, String> {
    let network = text.parse::<IpNet>().or_else(|_| text.parse::<std::net::IpAddr>().map(IpNet::from));
    let network = network.map(canonical).map_err(|_| "must be a network (`10.0.0.0/8`) or an address".to_owned())?;
    if network.trunc() != network {
        return Err(format!("has bits set past its length; `{}` is the network", network.trunc()));
    }
    Ok(network)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_a_time_from_now_or_a_date_within_three_years() {
        let now: Timestamp = "2027-01-15T08:00:00Z".parse().unwrap();
        let table = [
            ("90d", Some("2027-04-15T08:00:00Z"), "days"),
            ("52w", Some("2028-01-14T08:00:00Z"), "weeks"),
            ("12h", Some("2027-01-15T20:00:00Z"), "hours"),
            ("2027-03-31T00:00:00Z", Some("2027-03-31T00:00:00Z"), "a date and time"),
            ("2027-03-31T00:00:00+02:00", Some("2027-03-30T22:00:00Z"), "with an offset"),
            ("0d", None, "over already"),
            ("2027-01-15T08:00:00Z", None, "over already"),
            ("1099d", None, "too far away"),
            ("9999999999999999d", None, "absurd"),
        ];
        for (text, expected, why) in table {
            let end = Expiry::parse(text).ok().and_then(|expiry| expiry.after(now));
            assert_eq!(end.map(|end| end.to_string()).as_deref(), expected, "{text}: {why}");
        }
        for text in ["", "90", "d", "90 d", "-1d", "tomorrow", "90y"] {
            assert!(Expiry::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_network_is_written_as_it_is_compared() {
        let table = [
            ("10.0.0.0/8", Some("10.0.0.0/8"), "the everyday shape"),
            ("10.1.2.3", Some("10.1.2.3/32"), "one address"),
            ("::1", Some("::1/128"), "one IPv6 address"),
            ("::ffff:10.0.0.0/104", Some("10.0.0.0/8"), "IPv4 in an IPv6 coat"),
            ("2001:db8::/32", Some("2001:db8::/32"), "IPv6"),
            ("10.0.0.1/8", None, "bits past its length"),
            ("10.0.0.0/33", None, "longer than an address"),
            ("example.org", None, "a name"),
        ];
        for (text, expected, why) in table {
            let read = network(text).ok().map(|network| network.to_string());
            assert_eq!(read.as_deref(), expected, "{text}: {why}");
        }
    }
}
