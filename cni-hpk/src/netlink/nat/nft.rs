//! The rules as chains of the nftables tables `ip hpk` and `ip6 hpk`.
//!
//! Spoken over nfnetlink itself: running `nft` for each pod would cost more
//! than all the rest of ADD.

use std::io;
use std::net::IpAddr;

use ipnet::IpNet;

use super::message::{CHANGE, Message, NatSocket, SUBSYSTEM, next_attribute};
use super::{Family, Masquerade};
use crate::netlink::Error;
use crate::netlink::socket::{NLM_F_APPEND, NLM_F_CREATE, NLM_F_DUMP, NLM_F_REQUEST};

const TABLE: &str = "hpk";

/// Whether the kernel would take such rules from us: a transaction that is
/// never ended is looked at and forgotten. The error is the kernel's.
pub fn probe() -> io::Result<()> {
    let family = Family::Ipv4;
    let rule = Masquerade {
        subnet: family.multicast(),
        networks: Vec::new(),
    };
    let mut batch = Batch::begin();
    batch.fill("probe", family, &[&rule]);
    NatSocket::open().and_then(|mut socket| socket.transact(&batch.bytes, batch.changes))
}

/// The comments of the rules in the chains of `bridge`, in order; none if
/// there are no such chains.
pub fn read(bridge: &str) -> Result<Vec<String>, Error> {
    let read_all = || {
        let mut socket = NatSocket::open()?;
        let mut comments = read_family(&mut socket, bridge, Family::Ipv4)?;
        comments.extend(read_family(&mut socket, bridge, Family::Ipv6)?);
        Ok(comments)
    };
    read_all().map_err(|source| Error::new("read NAT rules of", bridge, source))
}

fn read_family(socket: &mut NatSocket, bridge: &str, family: Family) -> io::Result<Vec<String>> {
    let flags = NLM_F_REQUEST | NLM_F_DUMP;
    let mut message = Message::new(GET_RULE, flags, protocol(family), 0);
    message.text(RULE_TABLE, TABLE);
    message.text(RULE_CHAIN, bridge);
    let mut comments = Vec::new();
    socket.ask(message, |kind, body| {
        if kind == NEW_RULE {
            comments.extend(read_comment(body));
        }
    })?;
    Ok(comments)
}

/// Makes `rules` the only ones in the chains of `bridge`, in one transaction.
pub fn replace(bridge: &str, rules: &[Masquerade]) -> Result<(), Error> {
    let write = || {
        let mut socket = NatSocket::open()?;
        let mut batch = Batch::begin();
        for family in Family::ALL {
            let of_family: Vec<&Masquerade> =
                rules.iter().filter(|it| it.family() == family).collect();
            // No table for a family that has no rules and had none.
            if !of_family.is_empty() || !read_family(&mut socket, bridge, family)?.is_empty() {
                batch.fill(bridge, family, &of_family);
            }
        }
        batch.end();
        socket.transact(&batch.bytes, batch.changes)
    };
    write().map_err(|source| Error::new("write NAT rules of", bridge, source))
}

/// A transaction being written.
struct Batch {
    bytes: Vec<u8>,
    changes: usize,
}

impl Batch {
    fn begin() -> Self {
        Self {
            bytes: Message::batch(BATCH_BEGIN, 0),
            changes: 0,
        }
    }

    fn end(&mut self) {
        self.bytes.append(&mut Message::batch(BATCH_END, 0));
    }

    fn add(&mut self, message: Message) {
        self.bytes.append(&mut message.finish());
        self.changes += 1;
    }

    /// Table and chain, if they aren't there, and `rules` as all of its rules.
    fn fill(&mut self, chain: &str, family: Family, rules: &[&Masquerade]) {
        let protocol = protocol(family);
        let mut table = Message::new(NEW_TABLE, CHANGE | NLM_F_CREATE, protocol, 1);
        table.text(TABLE_NAME, TABLE);
        self.add(table);

        let mut message = Message::new(NEW_CHAIN, CHANGE | NLM_F_CREATE, protocol, 2);
        message.text(CHAIN_TABLE, TABLE);
        message.text(CHAIN_NAME, chain);
        message.nest(CHAIN_HOOK, |hook| {
            hook.be32(HOOK_NUMBER, NF_INET_POST_ROUTING);
            hook.be32(HOOK_PRIORITY, PRIORITY_SRCNAT);
        });
        message.text(CHAIN_TYPE, "nat");
        self.add(message);

        let mut flush = Message::new(DEL_RULE, CHANGE, protocol, 3);
        flush.text(RULE_TABLE, TABLE);
        flush.text(RULE_CHAIN, chain);
        self.add(flush);

        for rule in rules {
            let flags = CHANGE | NLM_F_CREATE | NLM_F_APPEND;
            let mut message = Message::new(NEW_RULE, flags, protocol, 4);
            message.text(RULE_TABLE, TABLE);
            message.text(RULE_CHAIN, chain);
            message.nest(RULE_EXPRESSIONS, |list| {
                match_address(list, Side::Source, CMP_EQ, rule.subnet);
                for network in &rule.networks {
                    match_address(list, Side::Destination, CMP_NEQ, *network);
                }
                match_address(list, Side::Destination, CMP_NEQ, family.multicast());
                expression(list, "masq", |data| data.be32(MASQ_FLAGS, RANDOM_FULLY));
            });
            message.bytes(RULE_USERDATA, &comment_data(&rule.to_string()));
            self.add(message);
        }
    }
}

fn protocol(family: Family) -> u8 {
    match family {
        Family::Ipv4 => NFPROTO_IPV4,
        Family::Ipv6 => NFPROTO_IPV6,
    }
}

#[derive(Clone, Copy)]
enum Side {
    Source,
    Destination,
}

impl Side {
    /// Offset in the IP header (RFC 791, RFC 8200), bytes.
    fn offset(self, family: Family) -> u32 {
        match (family, self) {
            (Family::Ipv4, Self::Source) => 12,
            (Family::Ipv4, Self::Destination) => 16,
            (Family::Ipv6, Self::Source) => 8,
            (Family::Ipv6, Self::Destination) => 24,
        }
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

fn match_address(list: &mut Message, side: Side, operator: u32, net: IpNet) {
    let family = Family::of(net);
    let length: u32 = match family {
        Family::Ipv4 => 4,
        Family::Ipv6 => 16,
    };
    expression(list, "payload", |data| {
        data.be32(PAYLOAD_DREG, REGISTER_1);
        data.be32(PAYLOAD_BASE, NETWORK_HEADER);
        data.be32(PAYLOAD_OFFSET, side.offset(family));
        data.be32(PAYLOAD_LEN, length);
    });
    expression(list, "bitwise", |data| {
        data.be32(BITWISE_SREG, REGISTER_1);
        data.be32(BITWISE_DREG, REGISTER_1);
        data.be32(BITWISE_LEN, length);
        data.nest(BITWISE_MASK, |mask| {
            mask.bytes(DATA_VALUE, &octets(net.netmask()));
        });
        data.nest(BITWISE_XOR, |xor| {
            xor.bytes(DATA_VALUE, &[0; 16][..length as usize]);
        });
    });
    expression(list, "cmp", |data| {
        data.be32(CMP_SREG, REGISTER_1);
        data.be32(CMP_OP, operator);
        data.nest(CMP_DATA, |value| {
            value.bytes(DATA_VALUE, &octets(net.network()));
        });
    });
}

fn expression(list: &mut Message, name: &str, fill: impl FnOnce(&mut Message)) {
    list.nest(LIST_ELEMENT, |element| {
        element.text(EXPRESSION_NAME, name);
        element.nest(EXPRESSION_DATA, fill);
    });
}

/// libnftnl's form of a comment: type 0, length, text with its NUL.
fn comment_data(text: &str) -> Vec<u8> {
    let length = u8::try_from(text.len() + 1).unwrap_or(u8::MAX);
    let mut data = vec![0, length];
    data.extend_from_slice(&text.as_bytes()[..usize::from(length) - 1]);
    data.push(0);
    data
}

fn read_comment(body: &[u8]) -> Option<String> {
    let mut rest = body.get(4..)?;
    while let Some((kind, value, next)) = next_attribute(rest) {
        if kind == RULE_USERDATA {
            let length = usize::from(*value.get(1).filter(|_| value[0] == 0)?);
            let text = value.get(2..(2 + length).checked_sub(1)?)?;
            return Some(String::from_utf8_lossy(text).into_owned());
        }
        rest = next;
    }
    // A rule that isn't ours: differs from all we might want.
    Some(String::new())
}

// linux/netfilter/nfnetlink.h and nf_tables.h
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NEW_TABLE: u16 = SUBSYSTEM << 8;
const NEW_CHAIN: u16 = SUBSYSTEM << 8 | 3;
const NEW_RULE: u16 = SUBSYSTEM << 8 | 6;
const GET_RULE: u16 = SUBSYSTEM << 8 | 7;
const DEL_RULE: u16 = SUBSYSTEM << 8 | 8;
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;
const NF_INET_POST_ROUTING: u32 = 4;
const PRIORITY_SRCNAT: u32 = 100;
const TABLE_NAME: u16 = 1;
const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_TYPE: u16 = 7;
const HOOK_NUMBER: u16 = 1;
const HOOK_PRIORITY: u16 = 2;
const RULE_TABLE: u16 = 1;
const RULE_CHAIN: u16 = 2;
const RULE_EXPRESSIONS: u16 = 4;
const RULE_USERDATA: u16 = 7;
const LIST_ELEMENT: u16 = 1;
const EXPRESSION_NAME: u16 = 1;
const EXPRESSION_DATA: u16 = 2;
const DATA_VALUE: u16 = 1;
const PAYLOAD_DREG: u16 = 1;
const PAYLOAD_BASE: u16 = 2;
const PAYLOAD_OFFSET: u16 = 3;
const PAYLOAD_LEN: u16 = 4;
const NETWORK_HEADER: u32 = 1;
const REGISTER_1: u32 = 1;
const BITWISE_SREG: u16 = 1;
const BITWISE_DREG: u16 = 2;
const BITWISE_LEN: u16 = 3;
const BITWISE_MASK: u16 = 4;
const BITWISE_XOR: u16 = 5;
const CMP_SREG: u16 = 1;
const CMP_OP: u16 = 2;
const CMP_DATA: u16 = 3;
const CMP_EQ: u32 = 0;
const CMP_NEQ: u32 = 1;
const MASQ_FLAGS: u16 = 1;
const RANDOM_FULLY: u32 = 1 << 4;

#[cfg(test)]
mod tests {
    use super::*;

    /// A rule as the kernel tells it, after the netlink header.
    fn rule_with(userdata: Option<&[u8]>) -> Vec<u8> {
        let mut message = Message::new(NEW_RULE, 0, NFPROTO_IPV6, 0);
        message.text(RULE_TABLE, TABLE);
        if let Some(data) = userdata {
            message.bytes(RULE_USERDATA, data);
        }
        message.finish()[16..].to_vec()
    }

    #[test]
    fn a_comment_is_read_back_from_its_userdata() {
        let body = rule_with(Some(&comment_data("hpk: a leaving b")));
        assert_eq!(read_comment(&body), Some("hpk: a leaving b".to_owned()));
    }

    #[test]
    fn a_rule_without_a_comment_is_not_ours() {
        let body = rule_with(None);
        assert_eq!(read_comment(&body), Some(String::new()));
    }
}
