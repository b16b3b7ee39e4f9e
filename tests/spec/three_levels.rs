//! Function, object and field: the three levels, as a service sees them.

use gatepost::client::{Ask, EntityData};
use gatepost::model::decision::{Decision, DenialCode};
use serde_json::json;

use crate::support::{Gatepost, account, minutes, order};

/// OWASP API1:2023, broken object level authorization.
#[tokio::test(flavor = "multi_thread")]
async fn an_order_is_shown_to_its_customer_and_to_nobody_else() {
    let gatepost = Gatepost::start().await;
    let alice = gatepost.token("alice", &[]);
    let own = gatepost.ask(order("Order.read", "o-1", "alice").token(&alice)).await.unwrap();
    assert!(own.allowed());
    assert_eq!(own.determining_policies(), ["order.customer-reads"]);

    let others = gatepost.ask(order("Order.read", "o-2", "bob").token(&alice)).await.unwrap();
    assert_eq!(others.decision(), Decision::Deny);
    assert_eq!(others.denial(), Some(DenialCode::NoPermit));
}

/// OWASP API5:2023, broken function level authorization.
#[tokio::test(flavor = "multi_thread")]
async fn a_function_is_denied_allowed_or_asked_again_with_the_object() {
    let gatepost = Gatepost::start().await;
    let office = gatepost.client("back-office");
    let claims = json!({ "tenant": "acme", "roles": ["admin"], "amr": ["pwd", "mfa"] });
    let (alice, admin) = (gatepost.token("alice", &[]), gatepost.token_with("root", &claims, minutes(5)));
    let delete = |token: &str| Ask::new("User.delete").any_resource("User").token(token);
    assert_eq!(office.check(delete(&alice)).await.unwrap().decision(), Decision::Deny);
    let conditional = office.check(delete(&admin)).await.unwrap();
    assert_eq!(conditional.decision(), Decision::Conditional, "it depends on the tenant of whom");
    assert!(!conditional.allowed(), "only ALLOW is access");
    let product = Ask::new("Product.read").any_resource("Product").token(&alice);
    assert_eq!(gatepost.ask(product).await.unwrap().decision(), Decision::Conditional);
}

/// OWASP API3:2023, excessive data exposure.
#[tokio::test(flavor = "multi_thread")]
async fn a_read_mask_holds_exactly_the_granted_leaves() {
    let gatepost = Gatepost::start().await;
    let alice = gatepost.token("alice", &[]);
    let answer = gatepost.ask(account("Account.read", "alice").fields_all().token(&alice)).await.unwrap();
    assert!(answer.allowed());
    let mask = answer.mask().unwrap();
    let mut document = json!({
        "display_name": "Alice", "email": "a@shop.example", "address": { "country": "NL", "city": "Delft" },
        "last_login_ip": "192.0.2.7", "risk_score": 9, "password_hash": "x", "new_field": 1,
    });
    mask.apply(&mut document);
    assert_eq!(
        document,
        json!({ "display_name": "Alice", "email": "a@shop.example", "address": { "country": "NL", "city": "Delft" } })
    );
    let support = gatepost.token("sam", &["support"]);
    let answer = gatepost.ask(account("Account.read", "alice").fields_all().token(&support)).await.unwrap();
    let paths: Vec<String> = answer.mask().unwrap().paths().map(ToString::to_string).collect();
    assert_eq!(paths, ["address.country", "display_name", "plan", "role"]);
}

/// OWASP API3:2023, mass assignment.
#[tokio::test(flavor = "multi_thread")]
async fn a_strict_write_names_the_refused_fields_and_a_filtered_one_drops_them() {
    let gatepost = Gatepost::start().await;
    let alice = gatepost.token("alice", &[]);
    let change = |fields: &[&str]| account("Account.update", "alice").fields(fields.to_vec()).token(&alice);
    assert!(gatepost.ask(change(&["email"])).await.unwrap().allowed());
    let refused = gatepost.ask(change(&["email", "role", "no_such_field"])).await.unwrap();
    assert_eq!(refused.denial(), Some(DenialCode::FieldNotGranted));
    assert_eq!(refused.refused_fields().collect::<Vec<_>>(), ["no_such_field", "role"]);
    let filtered = gatepost.ask(change(&["email", "role"]).filter()).await.unwrap();
    assert_eq!(filtered.mask().unwrap().paths().map(ToString::to_string).collect::<Vec<_>>(), ["email"]);
    let nothing = gatepost.ask(change(&["role"]).filter()).await.unwrap();
    assert_eq!(nothing.denial(), Some(DenialCode::NoFieldGranted), "an empty mask never leaves");
}

/// DESIGN section 2: leaves only, unless a policy grants the subtree by name.
#[tokio::test(flavor = "multi_thread")]
async fn a_subtree_is_listed_whole_only_where_a_policy_names_it() {
    let gatepost = Gatepost::start().await;
    let paid = || {
        Ask::new("Order.read")
            .resource("Order", "o-1")
            .reference("tenant", "Tenant", "acme")
            .reference("customer", "User", "alice")
            .attribute("status", "paid")
            .attribute("total", 10)
    };
    let answer = gatepost.client("fulfilment").check(paid().fields_all().caller()).await.unwrap();
    assert_eq!(answer.mask().unwrap().paths().map(ToString::to_string).collect::<Vec<_>>(), ["shipping"]);
    let alice = gatepost.token("alice", &[]);
    let answer = gatepost.ask(paid().fields_all().token(&alice)).await.unwrap();
    assert!(answer.mask().unwrap().paths().all(|path| path.as_str() != "shipping"), "granted by group: leaves");
    let one = gatepost.client("fulfilment").check(paid().fields(["shipping.city"]).caller()).await.unwrap();
    assert_eq!(
        one.mask().unwrap().paths().map(ToString::to_string).collect::<Vec<_>>(),
        ["shipping.city"],
        "only what was asked"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_principal_may_be_a_token_s_the_caller_itself_or_nobody_but_never_a_default() {
    let gatepost = Gatepost::start().await;
    let product = || Ask::new("Product.read").resource("Product", "p-1").attribute("published", true);
    assert!(gatepost.ask(product().anonymous()).await.unwrap().allowed());
    let unasserted = gatepost.ask(product().asserted(EntityData::new("User", "alice"))).await.unwrap_err();
    assert!(
        unasserted.to_string().to_lowercase().contains("permission")
            || format!("{unasserted:?}").contains("Permission"),
        "{unasserted:?}"
    );
    let mut raw = gatepost.raw("storefront").await;
    let nobody =
        raw.check(gatepost::proto::v1::CheckRequest { action: "Product.read".into(), ..Default::default() }).await;
    assert_eq!(nobody.unwrap_err().code(), tonic::Code::InvalidArgument);
}
