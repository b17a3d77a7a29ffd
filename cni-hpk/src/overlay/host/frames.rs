//! Which frame goes where, and which datagram is taken. No I/O.
//!
//! VXLAN (RFC 7348): eight bytes, the flag "VNI is valid" and the VNI, before
//! an Ethernet frame. Nothing is learnt from traffic.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddrV4};

use crate::netlink::Mac;
use crate::overlay::peer::{Peers, Record};

/// Length of the VXLAN header, bytes.
pub const HEADER: usize = 8;
/// Length of an Ethernet header, bytes.
const ETHERNET: usize = 14;
const VNI_VALID: u8 = 0x08;

/// The peers as the data path needs them.
#[derive(Debug, Default)]
pub struct Table {
    vni: u32,
    by_mac: HashMap<Mac, Target>,
}

#[derive(Debug)]
struct Target {
    address: SocketAddrV4,
    /// A kernel-mode peer's datagrams come from any port of its host.
    any_port: bool,
}

/// Why a datagram is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    TooShort,
    NotOurVni,
    /// The frame's sender is no peer, or is a peer elsewhere.
    NotFromPeer,
}

impl Table {
    pub fn new(vni: u32, peers: &Peers) -> Self {
        let target = |record: &Record| Target {
            address: SocketAddrV4::new(record.host_ip, record.udp_port),
            any_port: record.mode != "host",
        };
        Self {
            vni,
            by_mac: peers
                .values()
                .map(|record| (record.mac, target(record)))
                .collect(),
        }
    }

    /// Where the frame behind `packet`'s first [`HEADER`] bytes goes; writes
    /// the header. `None`: nowhere, as broadcasts, for nothing needs them.
    pub fn outgoing(&self, packet: &mut [u8]) -> Option<SocketAddrV4> {
        let frame = packet
            .get(HEADER..)
            .filter(|frame| frame.len() >= ETHERNET)?;
        let destination = Mac(frame[..6].try_into().ok()?);
        let target = self.by_mac.get(&destination)?;
        let [_, a, b, c] = self.vni.to_be_bytes();
        packet[..HEADER].copy_from_slice(&[VNI_VALID, 0, 0, 0, a, b, c, 0]);
        Some(target.address)
    }

    /// The frame in a datagram, if it is one of a peer's: its sender's
    /// hardware address, host and, in mode `host`, port are those published.
    pub fn incoming<'a>(
        &self,
        source: SocketAddrV4,
        datagram: &'a [u8],
    ) -> Result<&'a [u8], Refusal> {
        let (header, frame) = datagram
            .split_at_checked(HEADER)
            .filter(|(_, frame)| frame.len() >= ETHERNET)
            .ok_or(Refusal::TooShort)?;
        let vni = u32::from_be_bytes([0, header[4], header[5], header[6]]);
        if header[0] & VNI_VALID == 0 || vni != self.vni {
            return Err(Refusal::NotOurVni);
        }
        let sender: [u8; 6] = frame[6..12].try_into().map_err(|_| Refusal::TooShort)?;
        let target = self.by_mac.get(&Mac(sender)).ok_or(Refusal::NotFromPeer)?;
        let host: Ipv4Addr = *target.address.ip();
        if host != *source.ip() || !(target.any_port || target.address == source) {
            return Err(Refusal::NotFromPeer);
        }
        Ok(frame)
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::peer::tests::record;
    use super::*;

    fn table(mode: &str) -> Table {
        let subnet = "10.244.5.0/24".parse().unwrap();
        let record = Record {
            mode: mode.to_owned(),
            ..record(subnet)
        };
        Table::new(77, &Peers::from([(subnet, record)]))
    }

    fn peer() -> Mac {
        Mac::of_ipv4(Ipv4Addr::new(10, 244, 5, 0))
    }

    /// A datagram with a frame from one address to another.
    fn packet(destination: Mac, source: Mac) -> Vec<u8> {
        let mut packet = vec![0; HEADER];
        packet.extend_from_slice(&destination.0);
        packet.extend_from_slice(&source.0);
        packet.extend_from_slice(&[8, 0, 1, 2, 3]);
        packet
    }

    const FROM: &str = "192.0.2.9:9999";

    #[test]
    fn a_frame_to_a_peer_is_wrapped_and_taken_by_a_table_of_the_same_vni() {
        let table = table("host");
        let mut bytes = packet(peer(), peer());
        assert_eq!(table.outgoing(&mut bytes), FROM.parse().ok());
        assert_eq!(bytes[..HEADER], [8, 0, 0, 0, 0, 0, 77, 0]);
        let frame = table.incoming(FROM.parse().unwrap(), &bytes).unwrap();
        assert_eq!(frame, &bytes[HEADER..]);
    }

    #[test]
    fn broadcasts_and_strangers_go_nowhere() {
        for mac in [Mac([0xff; 6]), Mac([2; 6])] {
            assert_eq!(table("host").outgoing(&mut packet(mac, peer())), None);
        }
    }

    #[test]
    fn a_host_mode_peer_is_bound_to_its_port_and_a_kernel_mode_one_to_its_host() {
        let mut bytes = packet(Mac::default(), peer());
        bytes[..HEADER].copy_from_slice(&[8, 0, 0, 0, 0, 0, 77, 0]);
        let other_port = "192.0.2.9:1".parse().unwrap();
        let other_host = "192.0.2.8:9999".parse().unwrap();
        let refused = Err(Refusal::NotFromPeer);
        assert_eq!(table("host").incoming(other_port, &bytes), refused);
        assert!(table("kernel").incoming(other_port, &bytes).is_ok());
        assert_eq!(table("kernel").incoming(other_host, &bytes), refused);
    }

    #[test]
    fn rubbish_is_refused() {
        let from = FROM.parse().unwrap();
        let mut bytes = packet(Mac::default(), peer());
        assert_eq!(
            table("host").incoming(from, &bytes),
            Err(Refusal::NotOurVni)
        );
        bytes[..HEADER].copy_from_slice(&[8, 0, 0, 0, 0, 0, 78, 0]);
        assert_eq!(
            table("host").incoming(from, &bytes),
            Err(Refusal::NotOurVni)
        );
        for length in 0..HEADER + ETHERNET {
            let short = &bytes[..length];
            assert_eq!(table("host").incoming(from, short), Err(Refusal::TooShort));
        }
        bytes[..HEADER].copy_from_slice(&[8, 0, 0, 0, 0, 0, 77, 0]);
        bytes[HEADER + 6] ^= 1;
        assert_eq!(
            table("host").incoming(from, &bytes),
            Err(Refusal::NotFromPeer)
        );
    }
}
