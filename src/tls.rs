//! TLS: who we are on the listener, and who is at the other end.
//!
//! [`server`] keeps our certificate and the authorities we believe, and swaps them when the files change. [`peer`]
//! turns a verified client certificate into a name. Neither knows who is enrolled: that is [`caller`](crate::caller).

pub mod peer;
pub mod server;

#[cfg(test)]
pub(crate) mod fixture;
