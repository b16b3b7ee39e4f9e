//! Whatever callers send, `/metrics` stays within the bound that its page states, and shows nothing of it.

use std::collections::BTreeMap;

use futures_util::stream::{self, StreamExt as _};
use gatepost::model::decision::DenialCode;
use gatepost::pdp::DecideError;
use gatepost::proto::v1;
use gatepost::proto::v1::decision_service_client::DecisionServiceClient;
use gatepost::telemetry::metrics::{Extent, INSTRUMENTS, prometheus_name, series_at_most};
use serde_json::json;
use tonic::Code;

use crate::support::Gatepost;

/// Questions, each with an id, an action, a subject, a request id and a trace of its own.
const ALONE: usize = 10_000;
/// Further ones, each with a token of its own that is none.
const TOKENS: usize = 1_000;
/// As many again in batches, about an action that exists: so that ids get as far as the policies.
const BATCHES: usize = 100;
/// Services with a certificate and a name of their own, whom nobody enrolled; and some whom nobody vouches for.
const STRANGERS: usize = 300;
const FORGERS: usize = 50;

/// In every text that is sent, and in nothing of ours.
const MARK: &str = "qx7z";

fn subject(number: usize) -> v1::AssertedSubject {
    let text = |text: &str| prost_types::Value { kind: Some(prost_types::value::Kind::StringValue(text.to_owned())) };
    let tenant =
        prost_types::Struct { fields: [("type".to_owned(), text("Tenant")), ("id".to_owned(), text("acme"))].into() };
    let tenant = prost_types::Value { kind: Some(prost_types::value::Kind::StructValue(tenant)) };
    v1::AssertedSubject {
        r#type: "User".into(),
        id: format!("{MARK}-user-{number}"),
        attributes: Some(prost_types::Struct { fields: [("tenant".to_owned(), tenant)].into() }),
        ..v1::AssertedSubject::default()
    }
}

/// A question of the storefront: everything in it is there once.
fn question(number: usize) -> tonic::Request<v1::CheckRequest> {
    let mut question = crate::failing_closed::wire(&format!("{MARK}-token-{number}.e30.AA"));
    // The service vouches for the subject; but for those whose token stands for itself.
    if number < ALONE {
        question.subject = Some(v1::check_request::Subject::Asserted(subject(number)));
    }
    question.action = format!("Order.{MARK}{number}");
    question.resource.as_mut().unwrap().id = Some(format!("{MARK}-order-{number}"));
    let mut request = tonic::Request::new(question);
    request.metadata_mut().insert("x-request-id", format!("{MARK}-request-{number}").parse().unwrap());
    let trace = format!("00-{:032x}-{:016x}-01", number + 1, number + 1);
    request.metadata_mut().insert("traceparent", trace.parse().unwrap());
    request
}

fn batch(number: usize) -> v1::BatchCheckRequest {
    let plain = crate::failing_closed::wire("").resource;
    let item = |item: usize| v1::BatchCheckItem {
        action: "Order.read".into(),
        resource: plain.clone().map(|it| v1::Resource { id: Some(format!("{MARK}-{number}-{item}")), ..it }),
        ..v1::BatchCheckItem::default()
    };
    v1::BatchCheckRequest {
        subject: Some(v1::batch_check_request::Subject::Asserted(subject(ALONE + TOKENS + number))),
        items: (0..100).map(item).collect(),
        ..v1::BatchCheckRequest::default()
    }
}

/// The lines of a page by the instrument that they are of.
fn lines(page: &str) -> BTreeMap<&'static str, usize> {
    let mut counts = BTreeMap::new();
    for line in page.lines().filter(|line| !line.starts_with('#')) {
        let name = line.split(['{', ' ']).next().unwrap();
        let is_of = |instrument: &&gatepost::telemetry::metrics::Instrument| {
            let whole = prometheus_name(instrument);
            name.strip_prefix(whole.as_str()).is_some_and(|rest| ["", "_bucket", "_sum", "_count"].contains(&rest))
        };
        let instrument = INSTRUMENTS.iter().find(is_of).unwrap_or_else(|| panic!("whose is {line}"));
        *counts.entry(instrument.name).or_default() += 1;
    }
    counts
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_ids_actions_subjects_and_hundreds_of_callers_make_no_series() {
    let gatepost = Gatepost::start_with(|settings| {
        settings["callers"][0]["assert_subjects"] = json!(["User"]);
        settings["callers"][0]["supply_attributes"] = json!("*");
        settings["audit"]["mode"] = json!("written");
    })
    .await;
    let extent = Extent { actions: gatepost.pdp.store.current().actions().count(), issuers: 1, sinks: 0 };
    let service = gatepost.raw("storefront").await;

    let asked = stream::iter(0..ALONE + TOKENS).map(|number| {
        let mut service = service.clone();
        async move { service.check(question(number)).await.unwrap().into_inner() }
    });
    let denied = asked.buffer_unordered(64).map(|answer| answer.denial.unwrap().code());
    let codes = denied.fold(BTreeMap::<&str, usize>::new(), async |mut codes, code| {
        *codes.entry(code.as_str_name()).or_default() += 1;
        codes
    });
    let codes = codes.await;
    assert_eq!(codes["DENIAL_CODE_UNKNOWN_ACTION"], ALONE, "{codes:?}");
    assert_eq!(codes["DENIAL_CODE_TOKEN_REJECTED"], TOKENS, "{codes:?}");

    let asked = stream::iter(0..BATCHES).map(|number| {
        let mut service = service.clone();
        async move { service.batch_check(batch(number)).await.unwrap().into_inner().results.len() }
    });
    let answered = asked.buffer_unordered(4).fold(0, async |sum, count| sum + count).await;
    assert_eq!(answered, BATCHES * 100);

    let forged = gatepost::cli::demo::world::Authority::new("nobody").unwrap();
    for number in 0..STRANGERS + FORGERS {
        let name = format!("spiffe://shop.example/{MARK}/caller-{number}");
        if number >= STRANGERS {
            let files = gatepost.world.client_of(&forged, "forger", &name).unwrap();
            // In TLS 1.3 a client may learn of it with its first call.
            if let Ok(channel) = gatepost.channel(&files).await {
                DecisionServiceClient::new(channel).check(question(number)).await.unwrap_err();
            }
            continue;
        }
        let files = gatepost.world.client("stranger", &name).unwrap();
        let mut stranger = DecisionServiceClient::new(gatepost.channel(&files).await.unwrap());
        let refused = stranger.check(question(number)).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied);
    }

    let page = gatepost.metrics().await;
    assert!(
        !page.contains(MARK),
        "nothing that was sent is shown: {}",
        page.lines().find(|it| it.contains(MARK)).unwrap()
    );
    assert!(!page.contains("otel_metric_overflow"), "the closed lists are closed by themselves");
    let counted = lines(&page);
    for instrument in INSTRUMENTS {
        let (lines, most) = (counted.get(instrument.name).copied().unwrap_or(0), instrument.series(extent));
        assert!(lines <= most, "{} has {lines} series, and {most} at most", instrument.name);
    }
    let (all, bound) = (counted.values().sum::<usize>(), series_at_most(extent));
    assert!(all <= bound);
    // The bound is for every combination; what such a flood can reach of it is much less.
    assert!(all < 600, "{all} series:\n{page}");
    assert!(page.contains("gatepost_decisions_total{action=\"other\",denial=\"UNKNOWN_ACTION\""), "{page}");
    println!(
        "{} ids, {} actions that do not exist, {} subjects, {TOKENS} tokens, {STRANGERS} callers that nobody enrolled, \
         {FORGERS} forged: {all} series, at most {bound} with {} actions",
        ALONE + TOKENS + answered,
        ALONE + TOKENS,
        ALONE + BATCHES,
        extent.actions
    );
}

/// What the bound is computed from are the lists themselves.
#[test]
fn the_bound_of_a_label_is_the_length_of_its_list() {
    let most = |name: &str| INSTRUMENTS.iter().find(|instrument| instrument.name == name).unwrap().most;
    assert_eq!(most("gatepost.refused"), DecideError::ALL.len());
    assert_eq!(most("gatepost.decisions"), 3 * (2 + DenialCode::ALL.len()));
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/reference/errors.md")).unwrap();
    let rows = |heading: &str| {
        let part = page.split(&format!("\n## {heading}\n")).nth(1).unwrap().split("\n## ").next().unwrap();
        part.lines().filter(|line| line.starts_with("| `")).count()
    };
    assert_eq!(most("gatepost.handshakes.refused"), rows("Why a connection was refused"));
    assert_eq!(most("gatepost.policy.errors"), rows("Why a policy could not be evaluated"));
    let methods = gatepost::config::AdminMethod::ALL.len() + 1;
    let mut statuses: Vec<_> = gatepost::admin::AdminError::ALL.iter().map(|(status, _)| *status).collect();
    statuses.sort_unstable();
    statuses.dedup();
    assert_eq!(most("gatepost.admin.calls"), methods * (statuses.len() + 1), "and `OK`");
}
