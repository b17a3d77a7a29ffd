//! Masquerading of what leaves the pod network: a chain in the nftables table
//! `ip hpk`, named after the bridge.
//!
//! Spoken over nfnetlink itself: running `nft` for each pod would cost more
//! than all the rest of ADD. Each rule carries what it does as a comment, and
//! that is what is compared, so a rule is never there twice.

use std::fmt;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd as _, OwnedFd};

use ipnet::Ipv4Net;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket,
};

use super::Error;

const TABLE: &str = "hpk";

/// Packets from `subnet` that leave `network` take the address of the device
/// they leave by. Multicast stays as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Masquerade {
    /// The pods of this bubble.
    pub subnet: Ipv4Net,
    /// All pods; among them sources are kept.
    pub network: Ipv4Net,
}

impl fmt::Display for Masquerade {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "hpk: {} leaving {}", self.subnet, self.network)
    }
}

/// The comments of the rules in `chain`, in order; none if it isn't there.
/// Of the calling thread's network namespace.
pub fn read_comments(chain: &str) -> Result<Vec<String>, Error> {
    let fail = |source| Error::new("read NAT rules of", chain, source);
    let socket = open().map_err(fail)?;
    let mut message = Message::new(GET_RULE, NLM_F_REQUEST | NLM_F_DUMP, NFPROTO_IPV4, 0);
    message.text(RULE_TABLE, TABLE);
    message.text(RULE_CHAIN, chain);
    send(socket.as_raw_fd(), &message.finish(), MsgFlags::empty()).map_err(|e| fail(e.into()))?;
    let mut comments = Vec::new();
    loop {
        let mut done = false;
        receive(&socket, |kind, body| {
            match kind {
                NLMSG_DONE => done = true,
                NLMSG_ERROR => match error_code(body)? {
                    0 | libc::ENOENT => done = true,
                    errno => return Err(io::Error::from_raw_os_error(errno)),
                },
                NEW_RULE => comments.extend(read_comment(body)),
                _ => {}
            }
            Ok(())
        })
        .map_err(fail)?;
        if done {
            return Ok(comments);
        }
    }
}

/// Makes `rules` the only ones in `chain`, in one transaction.
pub fn replace(chain: &str, rules: &[Masquerade]) -> Result<(), Error> {
    let fail = |source| Error::new("write NAT rules of", chain, source);
    let socket = open().map_err(fail)?;
    let mut batch = Message::batch(BATCH_BEGIN, 1);
    let mut answers = 0;
    let mut add = |mut message: Message| {
        batch.append(&mut message.finish());
        answers += 1;
    };

    let mut table = Message::new(NEW_TABLE, CHANGE | NLM_F_CREATE, NFPROTO_IPV4, 2);
    table.text(TABLE_NAME, TABLE);
    add(table);

    let mut message = Message::new(NEW_CHAIN, CHANGE | NLM_F_CREATE, NFPROTO_IPV4, 3);
    message.text(CHAIN_TABLE, TABLE);
    message.text(CHAIN_NAME, chain);
    message.nest(CHAIN_HOOK, |hook| {
        hook.be32(HOOK_NUMBER, NF_INET_POST_ROUTING);
        hook.be32(HOOK_PRIORITY, PRIORITY_SRCNAT);
    });
    message.text(CHAIN_TYPE, "nat");
    add(message);

    let mut flush = Message::new(DEL_RULE, CHANGE, NFPROTO_IPV4, 4);
    flush.text(RULE_TABLE, TABLE);
    flush.text(RULE_CHAIN, chain);
    add(flush);

    for rule in rules {
        let flags = CHANGE | NLM_F_CREATE | NLM_F_APPEND;
        let mut message = Message::new(NEW_RULE, flags, NFPROTO_IPV4, 5);
        message.text(RULE_TABLE, TABLE);
        message.text(RULE_CHAIN, chain);
        message.nest(RULE_EXPRESSIONS, |list| {
            match_address(list, SOURCE, CMP_EQ, rule.subnet);
            match_address(list, DESTINATION, CMP_NEQ, rule.network);
            match_address(list, DESTINATION, CMP_NEQ, MULTICAST);
            expression(list, "masq", |data| data.be32(MASQ_FLAGS, RANDOM_FULLY));
        });
        message.bytes(RULE_USERDATA, &comment_data(&rule.to_string()));
        add(message);
    }
    batch.append(&mut Message::batch(BATCH_END, LAST));
    transact(&socket, &batch, answers).map_err(fail)
}

/// Sends a batch and waits until the kernel has said yes to each change in it,
/// or no to one.
fn transact(socket: &OwnedFd, batch: &[u8], mut answers: usize) -> io::Result<()> {
    send(socket.as_raw_fd(), batch, MsgFlags::empty())?;
    while answers > 0 {
        receive(socket, |kind, body| {
            if kind == NLMSG_ERROR {
                match error_code(body)? {
                    0 => answers = answers.saturating_sub(1),
                    errno => return Err(io::Error::from_raw_os_error(errno)),
                }
            }
            Ok(())
        })?;
    }
    Ok(())
}

const MULTICAST: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(224, 0, 0, 0), 4);

/// Offset of the source and destination address in an IPv4 header.
const SOURCE: u32 = 12;
const DESTINATION: u32 = 16;

fn match_address(list: &mut Message, offset: u32, operator: u32, net: Ipv4Net) {
    expression(list, "payload", |data| {
        data.be32(PAYLOAD_DREG, REGISTER_1);
        data.be32(PAYLOAD_BASE, NETWORK_HEADER);
        data.be32(PAYLOAD_OFFSET, offset);
        data.be32(PAYLOAD_LEN, 4);
    });
    expression(list, "bitwise", |data| {
        data.be32(BITWISE_SREG, REGISTER_1);
        data.be32(BITWISE_DREG, REGISTER_1);
        data.be32(BITWISE_LEN, 4);
        data.nest(BITWISE_MASK, |mask| {
            mask.bytes(DATA_VALUE, &net.netmask().octets());
        });
        data.nest(BITWISE_XOR, |xor| xor.bytes(DATA_VALUE, &[0; 4]));
    });
    expression(list, "cmp", |data| {
        data.be32(CMP_SREG, REGISTER_1);
        data.be32(CMP_OP, operator);
        data.nest(CMP_DATA, |value| {
            value.bytes(DATA_VALUE, &net.network().octets());
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

fn next_attribute(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = usize::from(u16::from_ne_bytes(bytes.get(0..2)?.try_into().ok()?));
    let kind = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?) & 0x3fff;
    let value = bytes.get(4..length)?;
    let next = bytes.get(length.next_multiple_of(4)..).unwrap_or(&[]);
    Some((kind, value, next))
}

fn open() -> io::Result<OwnedFd> {
    Ok(socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkNetFilter,
    )?)
}

/// Receives one datagram and gives each message in it to `accept`.
fn receive(
    socket: &OwnedFd,
    mut accept: impl FnMut(u16, &[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let mut buffer = vec![0u8; 64 * 1024];
    let length = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
    let mut rest = &buffer[..length];
    let short = || io::Error::from(io::ErrorKind::UnexpectedEof);
    while rest.len() >= HEADER {
        let length = u32::from_ne_bytes(rest[0..4].try_into().map_err(|_| short())?) as usize;
        let kind = u16::from_ne_bytes(rest[4..6].try_into().map_err(|_| short())?);
        accept(kind, rest.get(HEADER..length).ok_or_else(short)?)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or(&[]);
    }
    Ok(())
}

fn error_code(body: &[u8]) -> io::Result<i32> {
    body.get(..4)
        .and_then(|bytes| bytes.try_into().ok())
        .map(|bytes| -i32::from_ne_bytes(bytes))
        .ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

/// A netlink message, or the inside of a nested attribute, being written.
struct Message(Vec<u8>);

const HEADER: usize = 16;

impl Message {
    fn new(kind: u16, flags: u16, family: u8, sequence: u32) -> Self {
        let mut bytes = vec![0; 4];
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&flags.to_ne_bytes());
        bytes.extend_from_slice(&sequence.to_ne_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&[family, 0, 0, 0]);
        Self(bytes)
    }

    /// The brackets around a transaction.
    fn batch(kind: u16, sequence: u32) -> Vec<u8> {
        let mut message = Self::new(kind, NLM_F_REQUEST, 0, sequence);
        message.0[18..20].copy_from_slice(&SUBSYSTEM.to_be_bytes());
        message.finish()
    }

    fn finish(&mut self) -> Vec<u8> {
        let length = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        std::mem::take(&mut self.0)
    }

    fn bytes(&mut self, kind: u16, value: &[u8]) {
        let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    fn text(&mut self, kind: u16, value: &str) {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.bytes(kind, &bytes);
    }

    fn be32(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_be_bytes());
    }

    fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Message)) {
        let mut inside = Self(Vec::new());
        fill(&mut inside);
        self.bytes(kind | NLA_F_NESTED, &inside.0);
    }
}

// linux/netlink.h
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_DUMP: u16 = 0x300;
const NLM_F_CREATE: u16 = 0x400;
const NLM_F_APPEND: u16 = 0x800;
const CHANGE: u16 = NLM_F_REQUEST | NLM_F_ACK;
const NLA_F_NESTED: u16 = 0x8000;

// linux/netfilter/nfnetlink.h and nf_tables.h
const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const LAST: u32 = 6;
const NEW_TABLE: u16 = SUBSYSTEM << 8;
const NEW_CHAIN: u16 = SUBSYSTEM << 8 | 3;
const NEW_RULE: u16 = SUBSYSTEM << 8 | 6;
const GET_RULE: u16 = SUBSYSTEM << 8 | 7;
const DEL_RULE: u16 = SUBSYSTEM << 8 | 8;
const NFPROTO_IPV4: u8 = 2;
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

    #[test]
    fn a_comment_is_read_back_from_its_userdata() {
        let mut message = Message(vec![NFPROTO_IPV4, 0, 0, 0]);
        message.text(RULE_TABLE, TABLE);
        message.bytes(RULE_USERDATA, &comment_data("hpk: a leaving b"));
        assert_eq!(
            read_comment(&message.0),
            Some("hpk: a leaving b".to_owned())
        );
    }

    #[test]
    fn a_rule_without_a_comment_is_not_ours() {
        let mut message = Message(vec![NFPROTO_IPV4, 0, 0, 0]);
        message.text(RULE_TABLE, TABLE);
        assert_eq!(read_comment(&message.0), Some(String::new()));
    }
}
