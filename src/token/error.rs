//! Why a token is not believed, and why a verifier can't be built. The reasons are for our record; the caller learns a
//! bounded code alone. Neither ever quotes the token.

use crate::model::decision::DenialCode;

/// The first check that a token failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum TokenError {
    /// Longer than the limit.
    #[error("the token is longer than its limit")]
    Size,
    /// Not three parts of canonical base64url around strict JSON objects.
    #[error("the token is not a compact JWS of strict JSON")]
    Shape,
    /// `alg` is not one that the issuer is pinned to.
    #[error("the algorithm is not one of the issuer's")]
    Algorithm,
    /// `crit`: we understand no extension, so none may be critical.
    #[error("the header demands an extension")]
    CriticalHeader,
    /// The header offers a key or says where to get one.
    #[error("the header offers a key of its own")]
    HeaderKey,
    /// Encrypted, compressed, unencoded or nested.
    #[error("the header describes something other than a plain signed claims set")]
    UnsupportedHeader,
    /// `typ` is not one that the issuer's tokens have.
    #[error("the type is not one of the issuer's")]
    Type,
    /// `kid` is missing, empty, too long or no text.
    #[error("the header names no key")]
    NoKeyId,
    /// `iss` is none of ours.
    #[error("the issuer is not a trusted one")]
    UnknownIssuer,
    /// The issuer has no key of that id that may be used with that algorithm.
    #[error("the issuer has no such key")]
    UnknownKey,
    /// The issuer's keys were never had, or are too old to be believed; or its introspection gave no answer.
    #[error("the issuer's keys or answers are not to be had")]
    IssuerUnavailable,
    /// The signature does not hold.
    #[error("the signature does not hold")]
    BadSignature,
    /// Too many claims or audiences, or `act` nested too deeply.
    #[error("the claims exceed a limit")]
    ClaimLimit,
    /// A required claim is missing, or a registered one is of the wrong type.
    #[error("a claim is missing or of the wrong type")]
    Claims,
    /// `aud` does not name us.
    #[error("the token is meant for somebody else")]
    Audience,
    /// `nbf` is still to come.
    #[error("the token is not valid yet")]
    NotYetValid,
    /// `exp` has passed.
    #[error("the token has expired")]
    Expired,
    /// `iat` is still to come.
    #[error("the token was issued in the future")]
    IssuedInFuture,
    /// `exp - iat` is longer than the issuer's tokens may live.
    #[error("the token lives longer than it may")]
    Lifetime,
    /// `sub` is not an id.
    #[error("the subject is not an id")]
    Subject,
    /// The issuer's claim mapping makes no principal of these claims.
    #[error("the claims do not make a principal")]
    Mapping,
    /// `cnf` is malformed, or demands a proof that we can't check.
    #[error("the confirmation is not one that can be checked")]
    Confirmation,
    /// `jti` is missing, and the issuer's tokens must have one.
    #[error("the token has no id")]
    NoTokenId,
    /// Introspection: the issuer says that the token does not count (any more), or never did.
    #[error("the issuer does not know the token as active")]
    Inactive,
    /// `status` points to a list that is not configured, to none, past its end, or to a status of no known meaning.
    #[error("the token's status is none that can be checked")]
    StatusList,
    /// The status list was never had, has ended, or is too old to be believed.
    #[error("the token's status is not to be had")]
    StatusUnknown,
    /// The status list says invalid or suspended.
    #[error("the token's status is invalid or suspended")]
    StatusRevoked,
    /// Not an API key of ours: no key text, no such id, or not its secret. Which of them is told to nobody.
    #[error("not an API key that is known")]
    ApiKey,
    /// The API key was revoked.
    #[error("the API key was revoked")]
    ApiKeyRevoked,
    /// The API key is bound to networks, and the client's address is in none of them, or was not given.
    #[error("the API key may not be used from there")]
    ApiKeyNetwork,
}

impl TokenError {
    /// What the caller is told.
    #[must_use]
    pub fn denial(self) -> DenialCode {
        match self {
            Self::Expired => DenialCode::TokenExpired,
            Self::IssuerUnavailable | Self::StatusUnknown => DenialCode::IssuerUnavailable,
            Self::StatusRevoked | Self::ApiKeyRevoked => DenialCode::TokenRevoked,
            Self::Inactive | Self::StatusList | Self::ApiKey | Self::ApiKeyNetwork => DenialCode::TokenRejected,
            Self::Size
            | Self::Shape
            | Self::Algorithm
            | Self::CriticalHeader
            | Self::HeaderKey
            | Self::UnsupportedHeader
            | Self::Type
            | Self::NoKeyId
            | Self::UnknownIssuer
            | Self::UnknownKey
            | Self::BadSignature
            | Self::ClaimLimit
            | Self::Claims
            | Self::Audience
            | Self::NotYetValid
            | Self::IssuedInFuture
            | Self::Lifetime
            | Self::Subject
            | Self::Mapping
            | Self::Confirmation
            | Self::NoTokenId => DenialCode::TokenRejected,
        }
    }

    /// What the record and the metric say: a word from a closed list.
    #[must_use]
    pub fn reason(self) -> &'static str {
        match self {
            Self::Size => "SIZE",
            Self::Shape => "SHAPE",
            Self::Algorithm => "ALGORITHM",
            Self::CriticalHeader => "CRITICAL_HEADER",
            Self::HeaderKey => "HEADER_KEY",
            Self::UnsupportedHeader => "UNSUPPORTED_HEADER",
            Self::Type => "TYPE",
            Self::NoKeyId => "NO_KEY_ID",
            Self::UnknownIssuer => "UNKNOWN_ISSUER",
            Self::UnknownKey => "UNKNOWN_KEY",
            Self::IssuerUnavailable => "ISSUER_UNAVAILABLE",
            Self::BadSignature => "BAD_SIGNATURE",
            Self::ClaimLimit => "CLAIM_LIMIT",
            Self::Claims => "CLAIMS",
            Self::Audience => "AUDIENCE",
            Self::NotYetValid => "NOT_YET_VALID",
            Self::Expired => "EXPIRED",
            Self::IssuedInFuture => "ISSUED_IN_FUTURE",
            Self::Lifetime => "LIFETIME",
            Self::Subject => "SUBJECT",
            Self::Mapping => "MAPPING",
            Self::Confirmation => "CONFIRMATION",
            Self::NoTokenId => "NO_TOKEN_ID",
            Self::Inactive => "INACTIVE",
            Self::StatusList => "STATUS_LIST",
            Self::StatusUnknown => "STATUS_UNKNOWN",
            Self::StatusRevoked => "STATUS_REVOKED",
            Self::ApiKey => "API_KEY",
            Self::ApiKeyRevoked => "API_KEY_REVOKED",
            Self::ApiKeyNetwork => "API_KEY_NETWORK",
        }
    }
}

/// Why a verifier can't be built. Names the issuer as the operator wrote it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("issuer `{issuer}`: {problem}")]
pub struct TokenSetupError {
    /// `iss` in the configuration.
    pub issuer: String,
    /// What is wrong.
    pub problem: SetupProblem,
}

/// What is wrong with an issuer's settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SetupProblem {
    /// Two entries for one issuer.
    #[error("is listed twice")]
    Duplicate,
    /// No audience, or an empty one: tokens meant for anybody would be accepted.
    #[error("must name at least one audience, none of them empty")]
    Audiences,
    /// Symmetric and public keys must not meet: that is how a public key becomes a password.
    #[error("HS256 goes with a shared key and nothing else, a shared key with HS256 and nothing else")]
    Algorithms,
    /// RFC 7518 section 3.2.
    #[error("the shared key must have at least 32 bytes")]
    ShortSecret,
    /// Can't be read.
    #[error("the key file can't be read")]
    KeyFile,
    /// Read, but not a key set.
    #[error("the key file is not a JWKS document within its limits")]
    KeyDocument,
    /// Not an https URL with a host.
    #[error("the key URL must be https with a host, and without a user or password")]
    Url,
    /// The address in the URL is one we may not connect to.
    #[error("the key URL's address is private or reserved")]
    Address,
    /// The authorities can't be read, or there are none.
    #[error("the authorities for the key URL can't be read")]
    Authorities,
    /// TLS or HTTP can't be set up.
    #[error("no HTTP client can be made")]
    Client,
    /// Certificate or key can't be read, or don't belong together.
    #[error("the client certificate or its key for introspection can't be used")]
    ClientCertificate,
    /// The key is behind a passphrase.
    #[error("the client key for introspection is encrypted: decrypt it with `openssl pkey -in .. -out ..`")]
    EncryptedClientKey,
    /// Missing, empty or no text.
    #[error("the client secret for introspection can't be read")]
    ClientSecret,
    /// Two introspecting issuers could both be meant by one token.
    #[error("its token prefix does not tell its tokens from another issuer's")]
    Prefix,
}
