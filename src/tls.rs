//! TLS: who we are on the listener, and who is at the other end.
//!
//! [`server`] keeps our certificate and the authorities we believe, and swaps them when they change. [`authorities`] says
//! who vouches for whom, [`revocation`] what was taken back. [`peer`] turns a verified client certificate into a name, and
//! asks again while its connection lives. None of them knows who is enrolled: that is [`caller`](crate::caller).

pub mod authorities;
pub mod peer;
pub mod revocation;
pub mod server;

#[cfg(test)]
pub(crate) mod fixture;
