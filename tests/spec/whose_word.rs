//! Whose word counts about an entity: the token's, then what is stored, then the caller's.

use gatepost::cli::demo::world::spiffe_id;
use gatepost::client::{Ask, AskError, EntityData};
use serde_json::json;
use tonic::Code;

use crate::support::Gatepost;

/// THREATS T9: even a caller that may vouch for services and supply everything can't promote one that is known.
#[tokio::test(flavor = "multi_thread")]
async fn a_caller_can_not_talk_over_what_is_stored() {
    let gatepost = Gatepost::start_with(|settings| {
        let storefront = &mut settings["callers"][0];
        storefront["assert_subjects"] = json!(["Service"]);
        storefront["supply_attributes"] = json!("*");
        storefront["supply_parents"] = json!("*");
    })
    .await;
    let service = |name: &str| EntityData::new("Service", spiffe_id(name));
    let promoted = |name: &str| service(name).parent("ServiceGroup", "fraud");
    let risk = || {
        Ask::new("Account.read")
            .resource("Account", "acc-alice")
            .reference("tenant", "Tenant", "acme")
            .reference("owner", "User", "alice")
            .fields(["risk_score"])
    };
    let table = [
        (risk().asserted(service("fraud")), Ok(true), "stored as one of the fraud services"),
        (risk().asserted(service("storefront")), Ok(false), "stored as none of them"),
        (risk().asserted(promoted("storefront")), Err(Code::InvalidArgument), "said to be one, against what is stored"),
        (
            risk().asserted(promoted("newcomer")),
            Ok(true),
            "said to be one, and nothing else is known: that is the grant",
        ),
        (
            risk().asserted(service("fraud")).entity(EntityData::new("Tenant", "acme")),
            Ok(true),
            "naming what is stored is no contradiction",
        ),
        (
            risk().asserted(service("fraud")).entity(promoted("storefront")),
            Err(Code::InvalidArgument),
            "another entity, against what is stored",
        ),
        (
            risk().asserted(service("fraud")).entity(service("fraud")),
            Err(Code::InvalidArgument),
            "the principal comes from the subject alone",
        ),
    ];
    for (ask, expected, why) in table {
        let got = match gatepost.ask(ask).await {
            Ok(answer) => Ok(answer.allowed()),
            Err(AskError::Refused { code, .. }) => Err(code),
            Err(other) => panic!("{why}: {other:?}"),
        };
        assert_eq!(got, expected, "{why}");
    }
}
