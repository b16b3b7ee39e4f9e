//! Which addresses may be connected to when keys are fetched: public ones, private ones if the operator allows it, and
//! some never.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use url::{Host, Url};

/// Whether the host of `url` is a name, or an address that keys may be fetched from.
pub(super) fn may_connect_to_literal(url: &Url, private: bool) -> bool {
    match url.host() {
        Some(Host::Ipv4(address)) => may_connect(IpAddr::V4(address), private),
        Some(Host::Ipv6(address)) => may_connect(IpAddr::V6(address), private),
        Some(Host::Domain(_)) => true,
        None => false,
    }
}

/// Where clouds keep what their machines may know, outside the link-local range: never, private or not.
const CLOUD: [IpAddr; 4] = [
    // Alibaba Cloud, among the addresses that carriers share.
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    // Azure's virtual host, which looks public.
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
    // AWS, then Google Cloud, among the unique local ones.
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V6(Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)),
];

/// Whether keys may be fetched from `address`. Private and loopback ones are for the operator to allow; link-local
/// (where clouds keep their metadata), multicast and reserved ones never are.
///
/// Source: IANA special-purpose address registries (RFC 6890).
pub(super) fn may_connect(address: IpAddr, private: bool) -> bool {
    match address {
        IpAddr::V4(v4) => may_connect_v4(v4, private),
        IpAddr::V6(v6) => !CLOUD.contains(&address) && may_connect_v6(v6, private),
    }
}

fn may_connect_v4(address: Ipv4Addr, private: bool) -> bool {
    let [a, b, c, _] = address.octets();
    let inside = address.is_loopback() || address.is_private() || (a == 100 && (64..128).contains(&b));
    let never = CLOUD.contains(&IpAddr::V4(address))
        || a == 0
        || a >= 224
        || address.is_link_local()
        || address.is_documentation()
        || (a == 192 && b == 0 && c == 0)
        || (a == 198 && (b == 18 || b == 19));
    !never && (private || !inside)
}

fn may_connect_v6(address: Ipv6Addr, private: bool) -> bool {
    let [a, b, c, d, e, f, g, h] = address.segments();
    let embedded = |high: u16, low: u16| {
        let ([p, q], [r, s]) = (high.to_be_bytes(), low.to_be_bytes());
        may_connect_v4(Ipv4Addr::new(p, q, r, s), private)
    };
    if address.is_loopback() {
        return private;
    }
    match [a, b, c, d, e, f] {
        // Mapped, then NAT64, then 6to4: what is meant is the IPv4 address inside.
        [0, 0, 0, 0, 0, 0xffff] | [0x64, 0xff9b, 0, 0, 0, 0] => embedded(g, h),
        [0x2002, high, low, ..] => embedded(high, low),
        // Unique local (fc00::/7).
        [first, ..] if first & 0xfe00 == 0xfc00 => private,
        // Teredo, benchmarking, ORCHID and other protocol assignments (2001::/23), documentation.
        [0x2001, second, ..] if second < 0x200 || second == 0xdb8 => false,
        // Global unicast is 2000::/3; all else is link-local, multicast or not handed out.
        [first, ..] => first & 0xe000 == 0x2000,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_inside_is_connected_to_only_when_allowed_and_some_never() {
        let table = [
            ("93.184.216.34", true, true, "public"),
            ("2606:4700::1111", true, true, "public"),
            ("127.0.0.1", false, true, "loopback"),
            ("::1", false, true, "loopback"),
            ("10.1.2.3", false, true, "private"),
            ("172.31.0.1", false, true, "private"),
            ("192.168.0.1", false, true, "private"),
            ("100.64.0.1", false, true, "shared by carriers"),
            ("fd00::1", false, true, "unique local"),
            ("::ffff:127.0.0.1", false, true, "loopback in disguise"),
            ("64:ff9b::a00:1", false, true, "private behind NAT64"),
            ("2002:7f00:1::", false, true, "loopback behind 6to4"),
            ("169.254.169.254", false, false, "cloud metadata"),
            ("::ffff:169.254.169.254", false, false, "cloud metadata in disguise"),
            ("100.100.100.200", false, false, "another cloud's metadata"),
            ("168.63.129.16", false, false, "a cloud's virtual host"),
            ("::ffff:168.63.129.16", false, false, "the same in disguise"),
            ("fd00:ec2::254", false, false, "metadata among the unique local ones"),
            ("fd20:ce::254", false, false, "another cloud's"),
            ("fe80::1", false, false, "link-local"),
            ("224.0.0.1", false, false, "multicast"),
            ("ff02::1", false, false, "multicast"),
            ("0.0.0.0", false, false, "unspecified"),
            ("::", false, false, "unspecified"),
            ("255.255.255.255", false, false, "broadcast"),
            ("240.0.0.1", false, false, "reserved"),
            ("192.0.2.1", false, false, "documentation"),
            ("2001:db8::1", false, false, "documentation"),
            ("2001::1", false, false, "Teredo"),
        ];
        for (address, alone, allowed, why) in table {
            let parsed: IpAddr = address.parse().unwrap();
            assert_eq!(may_connect(parsed, false), alone, "{address}: {why}");
            assert_eq!(may_connect(parsed, true), allowed, "{address}, private allowed: {why}");
        }
    }
}
