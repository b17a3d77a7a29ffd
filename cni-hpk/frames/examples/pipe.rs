//! One end of an overlay without etcd, for measuring: `pipe NETNS DEVICE PORT
//! QUEUES OWN_MAC PEER_MAC PEER_ADDRESS PEER_SUBNET kernel|host`, VNI 42, IPv6
//! fd00::/16. Run as root in the host's namespace; prints counters on a line
//! from standard input.

use std::fs::File;
use std::net::Ipv4Addr;
use std::sync::Arc;

use hpk_frames::codec::join::Joiner;
use hpk_frames::codec::table::{Mac, Peer, Table};
use hpk_frames::counters::{Counters, Reason};
use hpk_frames::receive::Receiving;
use hpk_frames::send::Sending;
use hpk_frames::shared::{SharedTable, View};
use hpk_frames::{socket, tap::Tap};

type Error = Box<dyn std::error::Error>;

fn mac(text: &str) -> Result<Mac, Error> {
    let octets = text.split(':').map(|part| u8::from_str_radix(part, 16));
    let octets: Vec<u8> = octets.collect::<Result<_, _>>()?;
    octets
        .try_into()
        .map_err(|_| format!("{text}: no hardware address").into())
}

fn main() -> Result<(), Error> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [
        netns,
        device,
        port,
        queues,
        own,
        peer,
        address,
        subnet,
        mode,
    ] = &arguments[..]
    else {
        return Err("nine arguments are needed".into());
    };
    let count: usize = queues.parse()?;
    let sockets = socket::open(Ipv4Addr::UNSPECIFIED, port.parse()?, count, 212_992)?;
    nix::sched::setns(File::open(netns)?, nix::sched::CloneFlags::CLONE_NEWNET)?;
    let tap = Tap::open(device, count)?;
    let peer = Peer {
        mac: mac(peer)?,
        address: address.parse()?,
        kernel: mode == "kernel",
        subnet: subnet.parse()?,
        subnet6: Some("fd00::/16".parse()?),
    };
    let table = SharedTable::new(Table::new(42, mac(own)?, vec![peer]));
    let mut all = Vec::new();
    for (queue, socket) in tap.queues.into_iter().zip(sockets) {
        let (sent, received) = (Arc::new(Counters::default()), Arc::new(Counters::default()));
        all.push(("sent", sent.clone()));
        all.push(("received", received.clone()));
        let sending = Sending {
            queue: queue.try_clone()?,
            socket: socket.try_clone()?,
            view: View::new(table.clone()),
            counters: sent,
            mtu: 1450,
        };
        let receiving = Receiving {
            queue,
            socket,
            view: View::new(table.clone()),
            counters: received,
            joiner: Joiner::new(1450, tap.udp),
        };
        std::thread::spawn(move || eprintln!("{}", sending.run()));
        std::thread::spawn(move || eprintln!("{:?}", receiving.run()));
    }
    for line in std::io::stdin().lines() {
        line?;
        for (name, counters) in &all {
            let dropped: Vec<_> = Reason::ALL
                .iter()
                .map(|(reason, name)| (name, counters.dropped(*reason)))
                .filter(|(_, count)| *count > 0)
                .collect();
            println!(
                "{name}: {} frames, {} bytes, {} on the device, {} calls, dropped {dropped:?}",
                counters.frames.get(),
                counters.bytes.get(),
                counters.device.get(),
                counters.calls.get(),
            );
        }
    }
    Ok(())
}
