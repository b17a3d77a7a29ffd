//! Which frame goes where, and which datagram is taken.
//!
//! VXLAN (RFC 7348): eight bytes, the flag "VNI is valid" and the VNI, before
//! an Ethernet frame. Nothing is learnt from traffic.

use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};

use ipnet::{Ipv4Net, Ipv6Net};

use super::headers::{ETHERNET, source};

/// Length of the VXLAN header, bytes.
pub const VXLAN: usize = 8;
const VNI_VALID: u8 = 0x08;

/// A hardware address.
pub type Mac = [u8; 6];

/// The peers as the data path needs them.
#[derive(Clone, Debug, Default)]
pub struct Table {
    vni: u32,
    own: Mac,
    /// Sorted by hardware address.
    peers: Vec<Peer>,
}

/// Another bubble.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    pub mac: Mac,
    pub address: SocketAddrV4,
    /// A kernel's VXLAN device, whose datagrams come from any port of its host.
    pub kernel: bool,
    /// What packets of its pods come from.
    pub subnet: Ipv4Net,
    pub subnet6: Option<Ipv6Net>,
}

/// Why a datagram is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    TooShort,
    NotOurVni,
    /// The frame's sender is no peer, or is a peer elsewhere.
    NotFromPeer,
    /// The frame is for another than this bubble.
    NotForUs,
    /// No IP, which alone is carried: neighbours are known from the leases.
    NotIp,
    /// From an address that is not the sending peer's to give.
    NotOfLease,
    /// Longer than may be, or than can be cut.
    TooLong,
}

impl Table {
    /// `own` is the hardware address of this bubble's device.
    pub fn new(vni: u32, own: Mac, mut peers: Vec<Peer>) -> Self {
        peers.sort_by_key(|peer| peer.mac);
        Self { vni, own, peers }
    }

    pub fn len(&self) -> usize {
        self.peers.len()
    }

    pub fn is_empty(&self) -> bool {
        self.peers.is_empty()
    }

    fn find(&self, mac: Mac) -> Option<&Peer> {
        let position = self.peers.binary_search_by_key(&mac, |peer| peer.mac);
        position.ok().map(|position| &self.peers[position])
    }

    /// The header of every datagram we send.
    pub fn header(&self) -> [u8; VXLAN] {
        let [_, a, b, c] = self.vni.to_be_bytes();
        [VNI_VALID, 0, 0, 0, a, b, c, 0]
    }

    /// Where a frame goes. `None`: nowhere, as broadcasts, for nothing needs
    /// them.
    pub fn outgoing(&self, frame: &[u8]) -> Option<SocketAddrV4> {
        let destination = frame.get(..6)?.try_into().ok()?;
        (frame.len() >= ETHERNET).then_some(self.find(destination)?.address)
    }

    /// Whether a datagram is one of a peer's: its sender's hardware address,
    /// host and, in mode `host`, port are those published, and the packet in
    /// it comes from the peer's lease. Tells whether the peer is a kernel's
    /// device.
    pub fn incoming(&self, from: SocketAddrV4, datagram: &[u8]) -> Result<bool, Refusal> {
        let (header, frame) = datagram
            .split_at_checked(VXLAN)
            .filter(|(_, frame)| frame.len() >= ETHERNET)
            .ok_or(Refusal::TooShort)?;
        let vni = u32::from_be_bytes([0, header[4], header[5], header[6]]);
        if header[0] & VNI_VALID == 0 || vni != self.vni {
            return Err(Refusal::NotOurVni);
        }
        let sender = frame[6..12].try_into().map_err(|_| Refusal::TooShort)?;
        let peer = self.find(sender).ok_or(Refusal::NotFromPeer)?;
        let host: Ipv4Addr = *peer.address.ip();
        if host != *from.ip() || !(peer.kernel || peer.address == from) {
            return Err(Refusal::NotFromPeer);
        }
        if frame[..6] != self.own {
            return Err(Refusal::NotForUs);
        }
        let leased = match source(frame).ok_or(Refusal::NotIp)? {
            IpAddr::V4(address) => peer.subnet.contains(&address),
            IpAddr::V6(address) => peer.subnet6.is_some_and(|net| net.contains(&address)),
        };
        match leased {
            true => Ok(peer.kernel),
            false => Err(Refusal::NotOfLease),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub const VNI: u32 = 77;
    pub const OWN: Mac = [2, 0, 0, 0, 0, 1];
    pub const PEER: Mac = [2, 0, 0, 0, 0, 9];

    pub fn table(kernel: bool) -> Table {
        let peer = Peer {
            mac: PEER,
            address: from(),
            kernel,
            subnet: "10.244.5.0/24".parse().unwrap(),
            subnet6: "fd00:5::/64".parse().ok(),
        };
        Table::new(VNI, OWN, vec![peer])
    }

    pub fn from() -> SocketAddrV4 {
        "192.0.2.9:9999".parse().unwrap()
    }

    /// A datagram with an IPv4 packet that has nothing but a source.
    fn datagram() -> Vec<u8> {
        let mut datagram = table(false).header().to_vec();
        datagram.extend(OWN);
        datagram.extend(PEER);
        datagram.extend([8, 0, 0x45]);
        datagram.resize(VXLAN + ETHERNET + 12, 0);
        datagram.extend([10, 244, 5, 7]);
        datagram.extend([0; 4]);
        datagram
    }

    fn incoming(kernel: bool, from: &str, datagram: &[u8]) -> Result<bool, Refusal> {
        table(kernel).incoming(from.parse().unwrap(), datagram)
    }

    #[test]
    fn a_frame_goes_to_its_peer_and_broadcasts_and_strangers_nowhere() {
        let mut frame = datagram()[VXLAN..].to_vec();
        assert_eq!(table(false).outgoing(&frame), None);
        frame[..6].copy_from_slice(&PEER);
        assert_eq!(table(false).outgoing(&frame), Some(from()));
        frame[..6].fill(0xff);
        assert_eq!(table(false).outgoing(&frame), None);
        assert_eq!(table(false).outgoing(&PEER), None, "no whole frame");
    }

    #[test]
    fn a_host_mode_peer_is_bound_to_its_port_and_a_kernel_mode_one_to_its_host() {
        let bytes = datagram();
        let refused = Err(Refusal::NotFromPeer);
        assert_eq!(incoming(false, "192.0.2.9:9999", &bytes), Ok(false));
        assert_eq!(incoming(false, "192.0.2.9:1", &bytes), refused);
        assert_eq!(incoming(true, "192.0.2.9:1", &bytes), Ok(true));
        assert_eq!(incoming(true, "192.0.2.8:9999", &bytes), refused);
    }

    #[test]
    fn a_packet_from_outside_the_senders_lease_is_refused() {
        let mut bytes = datagram();
        let source = VXLAN + ETHERNET + 12;
        bytes[source + 2] = 6;
        let refused = Err(Refusal::NotOfLease);
        assert_eq!(incoming(false, "192.0.2.9:9999", &bytes), refused);

        bytes.truncate(VXLAN + ETHERNET);
        bytes.resize(VXLAN + ETHERNET + 40, 0);
        bytes[VXLAN + 12..VXLAN + ETHERNET + 1].copy_from_slice(&[0x86, 0xdd, 0x60]);
        bytes[VXLAN + ETHERNET + 8..VXLAN + ETHERNET + 14].copy_from_slice(&[0xfd, 0, 0, 5, 0, 0]);
        assert_eq!(incoming(false, "192.0.2.9:9999", &bytes), Ok(false));
        bytes[VXLAN + ETHERNET + 11] = 6;
        assert_eq!(incoming(false, "192.0.2.9:9999", &bytes), refused);
    }

    #[test]
    fn rubbish_is_refused_with_its_reason() {
        let from = "192.0.2.9:9999";
        let with = |change: fn(&mut Vec<u8>)| {
            let mut bytes = datagram();
            change(&mut bytes);
            incoming(false, from, &bytes)
        };
        assert_eq!(with(|bytes| bytes[0] = 0), Err(Refusal::NotOurVni));
        assert_eq!(with(|bytes| bytes[6] ^= 1), Err(Refusal::NotOurVni));
        assert_eq!(with(|bytes| bytes[VXLAN] ^= 2), Err(Refusal::NotForUs));
        assert_eq!(
            with(|bytes| bytes[VXLAN + 6] ^= 2),
            Err(Refusal::NotFromPeer)
        );
        assert_eq!(with(|bytes| bytes[VXLAN + 13] = 6), Err(Refusal::NotIp));
        assert_eq!(
            with(|bytes| bytes.truncate(VXLAN + 30)),
            Err(Refusal::NotIp)
        );
        for length in 0..VXLAN + ETHERNET {
            let short = &datagram()[..length];
            assert_eq!(incoming(false, from, short), Err(Refusal::TooShort));
        }
    }

    #[test]
    fn reserved_bits_are_ignored_on_receipt() {
        let mut bytes = datagram();
        for at in [1, 2, 3, 7] {
            bytes[at] = 0xff;
        }
        bytes[0] = 0xff;
        assert_eq!(incoming(false, "192.0.2.9:9999", &bytes), Ok(false));
    }
}
