//! Commands to paste while `gatepost demo --keep` serves: with the real paths, the real port, and a token.

use std::io;
use std::time::{Duration, SystemTime};

use super::stage::{AUDIT, Stage};
use super::story::token;

/// How long the tokens last. An issuer's longest, by default.
const LIFETIME: Duration = Duration::from_secs(15 * 60);
/// The wire's definition, for clients that do not use reflection.
const PROTO: &str = include_str!("../../../proto/gatepost/v1/decision_service.proto");

/// Writes tokens, the definition and a script into the folder, and gives the text.
///
/// # Errors
/// When files can't be written or tokens can't be signed.
pub fn commands(stage: &Stage, now: SystemTime) -> io::Result<String> {
    let world = &stage.world;
    for who in ["alice", "sam", "ada"] {
        world.write(&format!("{who}.token"), &token(world, who, now, LIFETIME)?)?;
    }
    let definition = world.folder().join("gatepost/v1");
    std::fs::create_dir_all(&definition)?;
    std::fs::write(definition.join("decision_service.proto"), PROTO)?;

    let (folder, policies) = (stage.folder().display(), stage.policies.display());
    let (address, ops) = (stage.address, stage.ops_address);
    Ok(format!(
        r#"
# Gatepost goes on serving at {address}. Ctrl-C ends it and removes {folder}.
# Everything below can be pasted into another terminal.

# 1. Where everything is, and on whose behalf (also sam.token: support, ada.token: admin; good for 15 minutes)

DEMO={folder} ADDRESS={address}
TOKEN=$(cat $DEMO/alice.token)

# 2. Ask as the storefront: may she see this account, and which fields of it?

QUESTION='{{
  "token": "'$TOKEN'",
  "action": "Account.read",
  "resource": {{
    "type": "Account", "id": "acc-alice",
    "attributes": {{ "tenant": {{"type": "Tenant", "id": "acme"}}, "owner": {{"type": "User", "id": "alice"}} }}
  }},
  "fields": {{ "all": true }}
}}'

# with grpcurl
grpcurl -cacert $DEMO/ca.pem -cert $DEMO/storefront.pem -key $DEMO/storefront.key \
  -d "$QUESTION" $ADDRESS gatepost.v1.DecisionService/Check

# or with buf
buf curl --protocol grpc --cacert $DEMO/ca.pem --cert $DEMO/storefront.pem --key $DEMO/storefront.key \
  -d "$QUESTION" https://$ADDRESS/gatepost.v1.DecisionService/Check

# or with Python (pip install grpcio grpcio-tools)
QUESTION="$QUESTION" PYTHONPATH=$DEMO python3 - $DEMO $ADDRESS <<'EOF'
import os, pathlib, sys
import grpc
from google.protobuf import json_format
demo, address = pathlib.Path(sys.argv[1]), sys.argv[2]
messages, services = grpc.protos_and_services("gatepost/v1/decision_service.proto")
read = lambda name: (demo / name).read_bytes()
identity = grpc.ssl_channel_credentials(read("ca.pem"), read("storefront.key"), read("storefront.pem"))
with grpc.secure_channel(address, identity) as channel:
    question = json_format.Parse(os.environ["QUESTION"], messages.CheckRequest())
    print(services.DecisionServiceStub(channel).Check(question, timeout=1))
EOF

# 3. Look at it as its operators do

curl -s http://{ops}/readyz
curl -s http://{ops}/metrics | grep gatepost_decisions_total
tail -n 1 $DEMO/{AUDIT}/segment-*.jsonl

# 4. Change its mind: edit and save a policy in {policies}
#    A sound bundle is in force within seconds. A broken one is refused, and the old one stays.

curl -s http://{ops}/metrics | grep gatepost_policy

# Every new record shows up below.

"#
    ))
}
