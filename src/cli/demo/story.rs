//! What the demo asks, and what has to come of it: the whole story as data.
//!
//! alice and bob are customers of the tenant acme, sam is its support, ada runs it; mallory belongs to nobody. Knows
//! nothing of servers and tables.

use std::io;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Serialize;
use serde_json::{Value, json};

use super::world::World;
use crate::client::Ask;
use crate::clock::unix_seconds;

/// The obligations that the services of the story fulfil.
pub const UNDERSTOOD: [&str; 4] =
    ["notify-account-owner", "notify-customer", "notify-deleted-user", "second-signature"];
/// The service whose certificate comes from another authority. It claims to be the storefront.
pub const FORGED: &str = "forged";

/// What came of a question, or has to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// `OK` when there is a decision; else the gRPC status, or `NO_CONNECTION`.
    pub status: String,
    /// Why there is no decision.
    pub reason: Option<String>,
    /// `ALLOW`, `DENY`, `CONDITIONAL`.
    pub decision: Option<&'static str>,
    /// Why not.
    pub denial: Option<String>,
    /// The granted fields.
    pub fields: Option<Vec<String>>,
    /// The fields that a strict question was refused.
    pub refused_fields: Vec<String>,
    /// What the service must do.
    pub obligations: Vec<String>,
    /// The determining policies, as far as the service sees them.
    pub policies: Vec<String>,
}

/// On whose behalf.
#[derive(Clone)]
pub enum Subject {
    /// Whoever this token speaks of.
    Token(String),
    /// The service itself.
    Caller,
}

/// One question.
pub struct Step {
    /// Who is behind it.
    pub who: &'static str,
    /// Through which service.
    pub service: &'static str,
    /// The action.
    pub action: &'static str,
    /// The object's id, or the type at the function level.
    pub resource: &'static str,
    /// What else there is to say, for people.
    pub note: &'static str,
    /// On whose behalf.
    pub subject: Subject,
    /// The question, without its subject.
    pub ask: Ask,
    /// What has to come of it.
    pub expected: Verdict,
    /// What the cache has to say in the record, where that matters.
    pub cache: Option<&'static str>,
}

/// Steps that show one threat.
pub struct Act {
    /// Which.
    pub title: &'static str,
    /// Whether the steps are the items of one batch.
    pub batch: bool,
    /// The steps.
    pub steps: Vec<Step>,
}

/// What the shop has stored about alice. `last_login_ip` and what follows it are nobody's business but security's.
#[must_use]
pub fn stored_account() -> Value {
    json!({
        "display_name": "Alice", "plan": "plus", "role": "customer",
        "email": "a@shop.example", "phone": "+31155550100",
        "address": { "country": "NL", "city": "Delft", "street": "Oude Delft 1" },
        "last_login_at": "2026-02-03T08:15Z", "last_login_ip": "198.51.100.7",
        "risk_score": 12, "password_hash": "$argon2id$v=19$..",
    })
}

/// The story, with tokens that are good (or as bad as meant) at `now`.
///
/// # Errors
/// When tokens can't be signed.
pub fn story(world: &World, now: SystemTime) -> io::Result<Vec<Act>> {
    let cast = Cast::new(world, now)?;
    Ok(vec![
        objects(&cast),
        functions(&cast),
        reading(&cast),
        writing(&cast),
        tokens(&cast),
        services(&cast),
        caching(&cast),
        batch(&cast),
    ])
}

/// A token of one of acme's people.
///
/// # Errors
/// When it can't be signed.
pub fn token(world: &World, who: &str, now: SystemTime, lifetime: Duration) -> io::Result<String> {
    let roles = match who {
        "ada" => json!(["admin"]),
        "sam" => json!(["support"]),
        _ => json!([]),
    };
    // Everybody has just signed in with a second factor: no guardrail on logins stands in the story's way.
    let login = unix_seconds(now).saturating_sub(60);
    let claims = json!({ "tenant": "acme", "roles": roles, "amr": ["pwd", "mfa"], "auth_time": login });
    world.token(who, &claims, now, lifetime)
}

struct Cast {
    alice: String,
    alice_expired: String,
    alice_tampered: String,
    sam: String,
    ada: String,
}

impl Cast {
    fn new(world: &World, now: SystemTime) -> io::Result<Self> {
        let minutes = |count: u64| Duration::from_secs(count * 60);
        let good = |who| token(world, who, now, minutes(5));
        let alice = good("alice")?;
        let alice_tampered = promoted(&alice).ok_or_else(|| io::Error::other("a token of our own is not a token"))?;
        Ok(Self {
            alice_tampered,
            alice_expired: token(world, "alice", now.checked_sub(minutes(15)).unwrap_or(now), minutes(5))?,
            sam: good("sam")?,
            ada: good("ada")?,
            alice,
        })
    }
}

/// The same token with `roles: [admin]` written into it, under the signature that it had.
fn promoted(token: &str) -> Option<String> {
    let mut parts = token.split('.');
    let (header, claims, signature) = (parts.next()?, parts.next()?, parts.next()?);
    let mut claims: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).ok()?).ok()?;
    claims.as_object_mut()?.insert("roles".to_owned(), json!(["admin"]));
    Some(format!("{header}.{}.{signature}", URL_SAFE_NO_PAD.encode(claims.to_string())))
}

fn objects(cast: &Cast) -> Act {
    let read = |id, tenant, customer| order("Order.read", id, tenant, customer);
    act(
        "Object level (OWASP API1, broken object level authorization): an id that is not yours",
        vec![
            step("alice", "storefront", "Order.read", "ord-1", "hers", &cast.alice, read("ord-1", "acme", "alice"))
                .expect(allowed("order.customer-reads")),
            step("alice", "storefront", "Order.read", "ord-2", "bob's", &cast.alice, read("ord-2", "acme", "bob"))
                .expect(denied("NO_PERMIT")),
            step(
                "ada",
                "back-office",
                "Order.read",
                "ord-9",
                "of another tenant",
                &cast.ada,
                read("ord-9", "globex", "gil"),
            )
            .expect(Verdict { policies: names(&["guard.other-tenant"]), ..denied("FORBIDDEN") }),
        ],
    )
}

fn functions(cast: &Cast) -> Act {
    let any = || Ask::new("User.delete").any_resource("User");
    let user = |id| Ask::new("User.delete").resource("User", id).reference("tenant", "Tenant", "acme");
    act(
        "Function level (OWASP API5, broken function level authorization): an administrator's function",
        vec![
            step("alice", "back-office", "User.delete", "User", "any", &cast.alice, any()).expect(denied("NO_PERMIT")),
            step("ada", "back-office", "User.delete", "User", "any", &cast.ada, any())
                .expect(Verdict { decision: Some("CONDITIONAL"), ..ok() }),
            step("ada", "back-office", "User.delete", "bob", "", &cast.ada, user("bob"))
                .expect(Verdict { obligations: names(&["notify-deleted-user"]), ..allowed("user.admin-deletes") }),
            step("ada", "back-office", "User.delete", "ada", "herself", &cast.ada, user("ada"))
                .expect(Verdict { policies: names(&["guard.no-self-deletion"]), ..denied("FORBIDDEN") }),
        ],
    )
}

fn reading(cast: &Cast) -> Act {
    let read = || account("Account.read").fields_all();
    let basic = ["address.country", "display_name", "plan", "role"];
    let own = ["address.city", "address.country", "address.street", "display_name", "email", "phone", "plan", "role"];
    let everything = [
        "address.city",
        "address.country",
        "address.street",
        "display_name",
        "email",
        "last_login_at",
        "last_login_ip",
        "phone",
        "plan",
        "role",
    ];
    act(
        "Fields, reading (OWASP API3, excessive data exposure): customer, support, administrator, a service",
        vec![
            step("alice", "storefront", "Account.read", "acc-alice", "all fields", &cast.alice, read())
                .expect(Verdict { fields: Some(names(&own)), ..allowed("account.owner-reads") }),
            step("sam", "back-office", "Account.read", "acc-alice", "all fields", &cast.sam, read())
                .expect(Verdict { fields: Some(names(&basic)), ..allowed("account.support-reads") }),
            step("ada", "back-office", "Account.read", "acc-alice", "all fields", &cast.ada, read())
                .expect(Verdict { fields: Some(names(&everything)), ..allowed("account.admin-reads") }),
            Step {
                subject: Subject::Caller,
                ..step("itself", "fraud", "Account.read", "acc-alice", "all fields", "", read())
            }
            .expect(Verdict { decision: Some("ALLOW"), fields: Some(names(&["risk_score"])), ..ok() }),
        ],
    )
}

fn writing(cast: &Cast) -> Act {
    let write = |fields: &[&str]| account("Account.update").fields(fields.to_vec());
    let owner = || allowed("account.owner-updates");
    act(
        "Fields, writing (OWASP API3, mass assignment): `role: admin` sent along with a new phone number",
        vec![
            step("alice", "storefront", "Account.update", "acc-alice", "phone", &cast.alice, write(&["phone"]))
                .expect(Verdict { fields: Some(names(&["phone"])), ..owner() }),
            step(
                "alice",
                "storefront",
                "Account.update",
                "acc-alice",
                "phone, role",
                &cast.alice,
                write(&["phone", "role"]),
            )
            .expect(Verdict { refused_fields: names(&["role"]), ..denied("FIELD_NOT_GRANTED") }),
            step(
                "alice",
                "storefront",
                "Account.update",
                "acc-alice",
                "phone, role; filter",
                &cast.alice,
                write(&["phone", "role"]).filter(),
            )
            .expect(Verdict { fields: Some(names(&["phone"])), ..owner() }),
            step("ada", "back-office", "Account.update", "acc-alice", "role", &cast.ada, write(&["role"])).expect(
                Verdict {
                    fields: Some(names(&["role"])),
                    obligations: names(&["notify-account-owner"]),
                    ..allowed("account.admin-updates")
                },
            ),
        ],
    )
}

fn tokens(cast: &Cast) -> Act {
    let read = || order("Order.read", "ord-1", "acme", "alice");
    act(
        "Tokens: a denial is an answer like any other, recorded like any other",
        vec![
            step("alice", "storefront", "Order.read", "ord-1", "token has expired", &cast.alice_expired, read())
                .expect(denied("TOKEN_EXPIRED")),
            step(
                "alice",
                "storefront",
                "Order.read",
                "ord-1",
                "admin written into token",
                &cast.alice_tampered,
                read(),
            )
            .expect(denied("TOKEN_REJECTED")),
        ],
    )
}

fn services(cast: &Cast) -> Act {
    let read = || order("Order.read", "ord-1", "acme", "alice");
    act(
        "Services: each asks about its own work with tokens meant for it, and nobody else asks at all",
        vec![
            step(
                "alice",
                "fulfilment",
                "Account.read",
                "acc-alice",
                "not its business",
                &cast.alice,
                account("Account.read"),
            )
            .expect(refused("PERMISSION_DENIED", "CALLER_NOT_ENTITLED")),
            step("alice", "newsletter", "Order.read", "ord-1", "not enrolled", &cast.alice, read())
                .expect(refused("PERMISSION_DENIED", "CALLER_NOT_ENROLLED")),
            step("mallory", FORGED, "Order.read", "ord-1", "the storefront's name, another CA", &cast.alice, read())
                .expect(refused("NO_CONNECTION", "UNKNOWN_ISSUER")),
            step(
                "alice",
                "fulfilment",
                "Order.read",
                "ord-1",
                "a token that the shop's app was given",
                &cast.alice,
                read(),
            )
            .expect(denied("TOKEN_NOT_FOR_CALLER")),
        ],
    )
}

fn caching(cast: &Cast) -> Act {
    let read = || order("Order.read", "ord-5", "acme", "alice");
    let asked = |note, cache| {
        let asked = step("alice", "storefront", "Order.read", "ord-5", note, &cast.alice, read());
        Step { cache: Some(cache), ..asked }.expect(allowed("order.customer-reads"))
    };
    act("Decision cache: the same question twice", vec![asked("first time", "miss"), asked("the same again", "hit")])
}

fn batch(cast: &Cast) -> Act {
    let item = |id, customer, note, expected| {
        step("alice", "storefront", "Order.read", id, note, &cast.alice, order("Order.read", id, "acme", customer))
            .expect(expected)
    };
    let steps = vec![
        item("ord-1", "alice", "hers", allowed("order.customer-reads")),
        item("ord-2", "bob", "bob's", denied("NO_PERMIT")),
        item("ord-3", "alice", "hers", allowed("order.customer-reads")),
        item("ord-4", "bob", "bob's", denied("NO_PERMIT")),
    ];
    Act {
        batch: true,
        ..act("Batch: a list in one call, an answer for each; the service shows what is allowed", steps)
    }
}

fn act(title: &'static str, steps: Vec<Step>) -> Act {
    Act { title, batch: false, steps }
}

fn step(
    who: &'static str,
    service: &'static str,
    action: &'static str,
    resource: &'static str,
    note: &'static str,
    token: &str,
    ask: Ask,
) -> Step {
    let subject = Subject::Token(token.to_owned());
    Step { who, service, action, resource, note, subject, ask, expected: ok(), cache: None }
}

impl Step {
    fn expect(self, expected: Verdict) -> Self {
        Self { expected, ..self }
    }
}

fn order(action: &str, id: &str, tenant: &str, customer: &str) -> Ask {
    Ask::new(action)
        .resource("Order", id)
        .reference("tenant", "Tenant", tenant)
        .reference("customer", "User", customer)
        .attribute("status", "paid")
        .attribute("total", 4250)
}

fn account(action: &str) -> Ask {
    Ask::new(action)
        .resource("Account", "acc-alice")
        .reference("tenant", "Tenant", "acme")
        .reference("owner", "User", "alice")
}

fn ok() -> Verdict {
    Verdict { status: "OK".to_owned(), ..Verdict::default() }
}

fn allowed(policy: &str) -> Verdict {
    Verdict { decision: Some("ALLOW"), policies: names(&[policy]), ..ok() }
}

fn denied(code: &str) -> Verdict {
    Verdict { decision: Some("DENY"), denial: Some(code.to_owned()), ..ok() }
}

fn refused(status: &str, reason: &str) -> Verdict {
    Verdict { status: status.to_owned(), reason: Some(reason.to_owned()), ..Verdict::default() }
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}
