//! What is shown of messages that hold a credential, or the id of one: never that. `build.rs` takes the derived `Debug` away.

use std::fmt::{Debug, Formatter, Result};

use super::admin::v1::{RevokeSessionRequest, RevokeTokenRequest, revoke_token_request};
use super::v1::{
    ApiKeyCredential, BatchCheckRequest, CheckRequest, StreamOpening, StreamRenewal, batch_check_request,
    check_request, stream_opening,
};

impl Debug for ApiKeyCredential {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.debug_struct("ApiKeyCredential").field("client_address", &self.client_address).finish_non_exhaustive()
    }
}

impl Debug for CheckRequest {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let mut shown = f.debug_struct("CheckRequest");
        shown.field("subject", &self.subject).field("action", &self.action).finish_non_exhaustive()
    }
}

impl Debug for check_request::Subject {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.write_str(match self {
            Self::Token(_) => "Token(..)",
            Self::Asserted(_) => "Asserted(..)",
            Self::Caller(_) => "Caller",
            Self::Anonymous(_) => "Anonymous",
            Self::ApiKey(_) => "ApiKey(..)",
        })
    }
}

impl Debug for BatchCheckRequest {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let mut shown = f.debug_struct("BatchCheckRequest");
        shown.field("subject", &self.subject).field("items", &self.items.len()).finish_non_exhaustive()
    }
}

impl Debug for batch_check_request::Subject {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.write_str(match self {
            Self::Token(_) => "Token(..)",
            Self::Asserted(_) => "Asserted(..)",
            Self::Caller(_) => "Caller",
            Self::Anonymous(_) => "Anonymous",
            Self::ApiKey(_) => "ApiKey(..)",
        })
    }
}

impl Debug for StreamOpening {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.debug_struct("StreamOpening").field("subject", &self.subject).finish_non_exhaustive()
    }
}

impl Debug for stream_opening::Subject {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.write_str(match self {
            Self::Token(_) => "Token(..)",
            Self::Asserted(_) => "Asserted(..)",
            Self::Caller(_) => "Caller",
            Self::Anonymous(_) => "Anonymous",
            Self::ApiKey(_) => "ApiKey(..)",
        })
    }
}

impl Debug for StreamRenewal {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.write_str("StreamRenewal(..)")
    }
}

impl Debug for RevokeTokenRequest {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.debug_struct("RevokeTokenRequest").field("issuer", &self.issuer).finish_non_exhaustive()
    }
}

impl Debug for revoke_token_request::Token {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.write_str(match self {
            Self::TokenId(_) => "TokenId(..)",
            Self::TokenIdSha256(_) => "TokenIdSha256(..)",
        })
    }
}

impl Debug for RevokeSessionRequest {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.debug_struct("RevokeSessionRequest").field("issuer", &self.issuer).finish_non_exhaustive()
    }
}
