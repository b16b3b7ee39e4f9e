//! A service that asks before it touches data: accounts and orders of a small shop over HTTP.
//!
//! ```text
//! cargo run --example axum_service -- --gatepost https://127.0.0.1:8443 \
//!     --ca ca.pem --cert client.pem --key client.key --listen 127.0.0.1:0
//! curl -H "authorization: Bearer $TOKEN" http://127.0.0.1:PORT/accounts/acc-alice
//! ```
//!
//! What Gatepost says becomes HTTP like this:
//!
//! | Gatepost | HTTP |
//! |---|---|
//! | allow | 200, with the granted fields alone |
//! | the token is refused, or there is none | 401 |
//! | the token may not be presented by this service | 403 |
//! | reading is denied | 404, as if it were not there: ids cannot be probed |
//! | reading is allowed, changing is not | 403, naming the fields |
//! | no answer, for whatever reason; the token's issuer is away | 503 |

use std::collections::BTreeMap;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use clap::Parser;
use gatepost::client::{Answer, Ask, AskError, Batch, Client, leaf_paths};
use gatepost::model::decision::DenialCode;
use gatepost::model::field_path::FieldPath;
use parking_lot::RwLock;
use serde_json::{Value, json};
use tonic::Code;

/// A shop that asks Gatepost.
#[derive(Parser)]
struct Options {
    /// Where Gatepost is: https://host:port
    #[arg(long)]
    gatepost: String,
    /// The name in Gatepost's certificate, if it is not the host above
    #[arg(long)]
    server_name: Option<String>,
    /// PEM: the authority of Gatepost's certificate
    #[arg(long)]
    ca: PathBuf,
    /// PEM: this service's certificate
    #[arg(long)]
    cert: PathBuf,
    /// PEM: its private key
    #[arg(long)]
    key: PathBuf,
    /// Where to listen; port 0 takes a free one
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// How long a question may take, in milliseconds
    #[arg(long, default_value_t = 200)]
    deadline_ms: u64,
}

/// The shop: whom it asks, and what it keeps. A real one keeps it in a database.
struct Shop {
    gatepost: Client,
    accounts: RwLock<BTreeMap<String, Value>>,
    orders: RwLock<BTreeMap<String, Value>>,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let options = Options::parse();
    let mut builder = Client::builder(options.gatepost)
        .ca(options.ca)
        .identity(options.cert, options.key)
        .deadline(Duration::from_millis(options.deadline_ms))
        // Only what `update_account` really does may stand here.
        .understands(["notify-account-owner"]);
    if let Some(name) = options.server_name {
        builder = builder.server_name(name);
    }
    let shop = Shop { gatepost: builder.build()?, accounts: RwLock::new(accounts()), orders: RwLock::new(orders()) };
    let service = Router::new()
        .route("/accounts/{id}", get(read_account).patch(update_account))
        .route("/orders/{id}", get(read_order))
        .layer(DefaultBodyLimit::max(64 * 1024))
        .with_state(Arc::new(shop));
    let listener = tokio::net::TcpListener::bind(options.listen).await?;
    writeln!(std::io::stdout(), "listening on {}", listener.local_addr()?)?;
    Ok(axum::serve(listener, service).await?)
}

async fn read_account(
    State(shop): State<Arc<Shop>>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let asker = Asker::of(&headers)?;
    let account = shop.accounts.read().get(&id).cloned();
    let Some(account) = account else { return asker.nothing_there(&shop, "Account.read", "Account").await };
    let answer =
        shop.gatepost.check(asker.on_behalf(about_account("Account.read", &id, &account).fields_all())).await?;
    show(&id, account, &answer)
}

async fn read_order(
    State(shop): State<Arc<Shop>>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let asker = Asker::of(&headers)?;
    let order = shop.orders.read().get(&id).cloned();
    let Some(order) = order else { return asker.nothing_there(&shop, "Order.read", "Order").await };
    let ask = Ask::new("Order.read")
        .resource("Order", &id)
        .reference("tenant", "Tenant", text(&order, "tenant"))
        .reference("customer", "User", text(&order, "customer"))
        .attribute("status", text(&order, "status"))
        .attribute("total", order.get("total").cloned());
    let answer = shop.gatepost.check(asker.on_behalf(ask.fields_all())).await?;
    show(&id, order, &answer)
}

/// Changes an account by a JSON merge patch (RFC 7396): all of it or nothing.
async fn update_account(
    State(shop): State<Arc<Shop>>,
    Path(id): Path<String>,
    headers: HeaderMap,
    Json(patch): Json<Value>,
) -> Result<Response, Refusal> {
    let asker = Asker::of(&headers)?;
    let account = shop.accounts.read().get(&id).cloned();
    let Some(account) = account else { return asker.nothing_there(&shop, "Account.read", "Account").await };

    // Ask for exactly what would change: the attempt then stands in Gatepost's records, field by field.
    let changed = leaf_paths(&patch);
    if changed.is_empty() || changed.iter().any(|path| FieldPath::parse(path).is_err()) {
        return Err(Refusal::Malformed);
    }
    let read = about_account("Account.read", &id, &account).fields_all();
    let update = about_account("Account.update", &id, &account).fields(&changed).strict();
    let mut answers = shop.gatepost.batch(asker.in_batch().ask(read).ask(update)).await?.into_iter();
    let (Some(may_read), Some(may_update)) = (answers.next(), answers.next()) else { return Err(Refusal::NoAnswer) };
    let may_read = may_read?;
    if !may_read.allowed() {
        return Err(Refusal::of_reading(&may_read));
    }
    let may_update = may_update?;
    let Some(mask) = may_update.mask() else { return Err(Refusal::of_changing(&may_update, changed)) };
    let refused = mask.refused_by(&patch);
    if !refused.is_empty() {
        return Err(Refusal::Fields(refused));
    }
    let updated = {
        let mut accounts = shop.accounts.write();
        let Some(current) = accounts.get_mut(&id) else { return Err(Refusal::NotThere) };
        // What was asked about must still be what is changed.
        if ["tenant", "owner"].iter().any(|name| current.get(name) != account.get(name)) {
            return Err(Refusal::Changed);
        }
        merge(current, patch);
        current.clone()
    };
    for obligation in may_update.obligations() {
        let _ = writeln!(std::io::stderr(), "{obligation}: told the owner of {id}");
    }
    show(&id, updated, &may_read)
}

/// The facts about an account that the policies go by. Not its fields: Gatepost has no need to know them.
fn about_account(action: &str, id: &str, account: &Value) -> Ask {
    Ask::new(action).resource("Account", id).reference("tenant", "Tenant", text(account, "tenant")).reference(
        "owner",
        "User",
        text(account, "owner"),
    )
}

/// The granted fields of a document, or why there are none.
fn show(id: &str, mut document: Value, answer: &Answer) -> Result<Response, Refusal> {
    let Some(mask) = answer.mask() else { return Err(Refusal::of_reading(answer)) };
    mask.apply(&mut document);
    if let Some(fields) = document.as_object_mut() {
        fields.insert("id".to_owned(), json!(id));
    }
    Ok(Json(document).into_response())
}

/// Whoever is asking: their token, and the names of their request.
struct Asker {
    token: String,
    traceparent: String,
    request_id: String,
}

impl Asker {
    fn of(headers: &HeaderMap) -> Result<Self, Refusal> {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let (scheme, token) = text("authorization").split_once(' ').ok_or(Refusal::Token)?;
        if !scheme.eq_ignore_ascii_case("bearer") || token.trim().is_empty() {
            return Err(Refusal::Token);
        }
        Ok(Self {
            token: token.trim().to_owned(),
            traceparent: text("traceparent").to_owned(),
            request_id: text("x-request-id").to_owned(),
        })
    }

    fn on_behalf(&self, ask: Ask) -> Ask {
        ask.token(&self.token).traceparent(&self.traceparent).request_id(&self.request_id)
    }

    fn in_batch(&self) -> Batch {
        Batch::new().token(&self.token).traceparent(&self.traceparent).request_id(&self.request_id)
    }

    /// An id that is not there is answered like one that is somebody else's, and only after the token has been looked
    /// at: the question is asked about any object of the type.
    async fn nothing_there(&self, shop: &Shop, action: &str, entity_type: &str) -> Result<Response, Refusal> {
        let answer = shop.gatepost.check(self.on_behalf(Ask::new(action).any_resource(entity_type))).await?;
        Err(Refusal::of_reading(&answer))
    }
}

/// Every way not to get what was asked for.
enum Refusal {
    Token,
    NotThere,
    Fields(Vec<String>),
    Forbidden,
    Changed,
    Malformed,
    NoAnswer,
}

impl Refusal {
    fn of_reading(answer: &Answer) -> Self {
        Self::of_the_token(answer).unwrap_or(Self::NotThere)
    }

    /// Only where a new token would help does it make sense to ask for one.
    fn of_the_token(answer: &Answer) -> Option<Self> {
        let code = answer.denial().filter(|code| code.is_about_the_token())?;
        Some(match code.http_status() {
            401 => Self::Token,
            503 => Self::NoAnswer,
            _ => Self::Forbidden,
        })
    }

    fn of_changing(answer: &Answer, asked: Vec<String>) -> Self {
        if let Some(refusal) = Self::of_the_token(answer) {
            return refusal;
        }
        let refused: Vec<String> = answer.refused_fields().map(str::to_owned).collect();
        match answer.denial() {
            _ if !refused.is_empty() => Self::Fields(refused),
            Some(DenialCode::NoFieldGranted) => Self::Fields(asked),
            _ => Self::Forbidden,
        }
    }
}

impl From<AskError> for Refusal {
    fn from(error: AskError) -> Self {
        match error {
            AskError::Refused { code: Code::InvalidArgument, .. } => Self::Malformed,
            AskError::Question(_)
            | AskError::Deadline
            | AskError::Unavailable { .. }
            | AskError::Refused { .. }
            | AskError::Answer(_) => {
                // An error of the client holds no token, so it may be logged.
                let _ = writeln!(std::io::stderr(), "no answer: {error}");
                Self::NoAnswer
            }
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let say = |status: StatusCode, error: &str| (status, Json(json!({"error": error}))).into_response();
        match self {
            Self::Token => {
                let challenge = [(header::WWW_AUTHENTICATE, "Bearer")];
                (StatusCode::UNAUTHORIZED, challenge, Json(json!({"error": "sign in"}))).into_response()
            }
            Self::NotThere => say(StatusCode::NOT_FOUND, "not found"),
            Self::Fields(fields) => {
                let body = json!({"error": "these fields may not be changed", "fields": fields});
                (StatusCode::FORBIDDEN, Json(body)).into_response()
            }
            Self::Forbidden => say(StatusCode::FORBIDDEN, "not allowed"),
            Self::Changed => say(StatusCode::CONFLICT, "it has changed meanwhile"),
            Self::Malformed => say(StatusCode::BAD_REQUEST, "malformed"),
            Self::NoAnswer => say(StatusCode::SERVICE_UNAVAILABLE, "try again later"),
        }
    }
}

/// RFC 7396 section 2.
fn merge(target: &mut Value, patch: Value) {
    let Value::Object(patch) = patch else {
        *target = patch;
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    let Some(fields) = target.as_object_mut() else { return };
    for (name, value) in patch {
        if value.is_null() {
            fields.remove(&name);
        } else {
            merge(fields.entry(name).or_insert(Value::Null), value);
        }
    }
}

fn text(document: &Value, name: &str) -> String {
    document.get(name).and_then(Value::as_str).unwrap_or_default().to_owned()
}

fn accounts() -> BTreeMap<String, Value> {
    let account = |owner: &str, name: &str, city: &str| {
        json!({
            "tenant": "acme", "owner": owner, "display_name": name, "plan": "gold",
            "email": format!("{owner}@acme.example"), "phone": "+41 31 000 00 00",
            "address": {"country": "CH", "city": city, "street": "Gasse 1"},
            "role": "customer", "last_login_ip": "192.0.2.7", "risk_score": 12, "password_hash": "argon2id..",
        })
    };
    BTreeMap::from([
        ("acc-alice".to_owned(), account("alice", "Alice", "Bern")),
        ("acc-bob".to_owned(), account("bob", "Bob", "Basel")),
    ])
}

fn orders() -> BTreeMap<String, Value> {
    let order = |customer: &str, status: &str, total: u32| {
        json!({
            "tenant": "acme", "customer": customer, "status": status, "total": total, "items": ["kettle", "tea"],
            "shipping": {"recipient": customer, "street": "Gasse 1", "city": "Bern"},
            "payment": {"method": "card", "last_digits": "4242"}, "internal_note": "calls often",
        })
    };
    BTreeMap::from([
        ("ord-1".to_owned(), order("alice", "paid", 4_200)),
        ("ord-2".to_owned(), order("bob", "open", 1_000)),
    ])
}
