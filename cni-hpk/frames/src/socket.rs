//! The UDP sockets of mode `host`: one a queue, all at the published port.

use std::io;
use std::mem::size_of;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, bind, setsockopt, socket, sockopt,
};

/// Opens `count` sockets at `port`, which must be nobody's, of the address
/// `host`: peers take only what comes from where we are said to be, and the
/// kernel might choose another of this host's. One that is none of them, but a
/// translation of one, can't be sent from. `buffer`, bytes each way, is asked
/// for; the kernel gives at most rmem_max and wmem_max, without telling.
pub fn open(host: Ipv4Addr, port: u16, count: usize, buffer: usize) -> io::Result<Vec<UdpSocket>> {
    // Alone, so that a second daemon is told; together they would share.
    drop(UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))?);
    let host = match UdpSocket::bind((host, 0)) {
        Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => Ipv4Addr::UNSPECIFIED,
        bound => bound.map(|_| host)?,
    };
    let sockets = (0..count.max(1))
        .map(|_| open_one(SocketAddrV4::new(host, port), buffer, count > 1))
        .collect::<io::Result<Vec<_>>>()?;
    if sockets.len() > 1 {
        steer(&sockets[0], sockets.len())?;
    }
    Ok(sockets)
}

fn open_one(address: SocketAddrV4, buffer: usize, shared: bool) -> io::Result<UdpSocket> {
    let socket: OwnedFd = socket(
        AddressFamily::Inet,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    setsockopt(&socket, sockopt::ReusePort, &shared)?;
    // Less than asked for is slower, not wrong.
    let _ = setsockopt(&socket, sockopt::RcvBuf, &buffer);
    let _ = setsockopt(&socket, sockopt::SndBuf, &buffer);
    // Kernels before 5.0 lack it, and give a datagram at a time.
    let _ = setsockopt(&socket, sockopt::UdpGroSegment, &true);
    ignore_path_mtu(&socket)?;
    bind(socket.as_raw_fd(), &SockaddrIn::from(address))?;
    Ok(socket.into())
}

/// As a kernel's VXLAN device: the link's MTU counts, not what strangers say
/// of the path's; and routers may fragment what doesn't fit.
fn ignore_path_mtu(socket: &OwnedFd) -> io::Result<()> {
    let value: libc::c_int = libc::IP_PMTUDISC_OMIT;
    // SAFETY: the value is an int that outlives the call, and its size is told.
    #[allow(unsafe_code)]
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_MTU_DISCOVER,
            (&raw const value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// How many messages the kernel dropped, for the socket's buffer was full.
pub fn overruns(socket: &UdpSocket) -> io::Result<u32> {
    // linux/sock_diag.h: SK_MEMINFO_VARS numbers, the last being the drops.
    let mut values = [0_u32; 9];
    let mut length = size_of_val(&values) as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes to `values`.
    #[allow(unsafe_code)]
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_MEMINFO,
            values.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    match result {
        0 => Ok(values[8]),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Spreads the datagrams over the sockets by the flow inside: all of one peer
/// come from one port, so the outer addresses tell nothing.
fn steer(socket: &UdpSocket, count: usize) -> io::Result<()> {
    let mut program = program(count as u32);
    let program = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_mut_ptr(),
    };
    Ok(setsockopt(socket, sockopt::AttachReusePortCbpf, &program)?)
}

// Classic BPF, linux/bpf_common.h.
const LOAD_WORD: u16 = 0x20;
const LOAD_HALF: u16 = 0x28;
const STORE: u16 = 0x02;
const TO_X: u16 = 0x07;
const LOAD_MEMORY_X: u16 = 0x61;
const XOR_X: u16 = 0xac;
const SHIFT_RIGHT: u16 = 0x74;
const MULTIPLY: u16 = 0x24;
const MODULO: u16 = 0x94;
const JUMP: u16 = 0x05;
const JUMP_IF_EQUAL: u16 = 0x15;
const RETURN: u16 = 0x16;

/// 2^32 over the golden ratio: neighbours end far apart (Knuth, The Art of
/// Computer Programming, volume 3, section 6.4).
const GOLDEN: u32 = 0x9e37_79b1;

/// A hash of addresses and ports of the packet inside, modulo the number of
/// sockets. It is mixed well: Linux gives connections made one after another
/// ports that are all even. It sees the datagram's payload; where that is too
/// short the program ends with the first socket.
fn program(count: u32) -> Vec<libc::sock_filter> {
    let step = |code, k| libc::sock_filter {
        code,
        jt: 0,
        jf: 0,
        k,
    };
    let (ethernet, packet) = (8, 8 + 14);
    let v4 = [packet + 12, packet + 16, packet + 20];
    // The last words of the addresses tell most.
    let v6 = [packet + 20, packet + 36, packet + 40];
    let mut program = vec![
        step(LOAD_HALF, ethernet + 12),
        libc::sock_filter {
            code: JUMP_IF_EQUAL,
            jt: 0,
            jf: 8,
            k: 0x0800,
        },
    ];
    for words in [v4, v6] {
        for (position, word) in words.into_iter().enumerate() {
            program.push(step(LOAD_WORD, word));
            if position > 0 {
                program.push(step(XOR_X, 0));
            }
            if position < 2 {
                program.push(step(TO_X, 0));
            }
        }
        if words == v4 {
            program.push(step(JUMP, 7));
        }
    }
    program.extend([
        step(STORE, 0),
        step(SHIFT_RIGHT, 16),
        step(LOAD_MEMORY_X, 0),
        step(XOR_X, 0),
        step(MULTIPLY, GOLDEN),
        // The product's upper bits depend on all of the factor's.
        step(SHIFT_RIGHT, 24),
        step(MODULO, count),
        step(RETURN, 0),
    ]);
    program
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A VXLAN datagram's payload as far as the program looks: VXLAN and
    /// Ethernet headers, an IPv4 or IPv6 header, ports.
    fn datagram(ethertype: u16, source: u16) -> Vec<u8> {
        let mut bytes = vec![0; 8 + 12];
        bytes.extend(ethertype.to_be_bytes());
        let (header, addresses) = match ethertype {
            0x0800 => (20, 12),
            _ => (40, 8),
        };
        bytes.extend((0..header).map(|at| if at < addresses { 0 } else { at }));
        bytes.extend(source.to_be_bytes());
        bytes.extend(5201_u16.to_be_bytes());
        bytes
    }

    /// How many of these datagrams each of `count` sockets gets.
    fn shares(count: usize, datagrams: &[Vec<u8>]) -> Vec<usize> {
        // A port that is free now; another process may take it before we do.
        let sockets = (0..20).find_map(|_| {
            let port = UdpSocket::bind("127.0.0.1:0")
                .ok()?
                .local_addr()
                .ok()?
                .port();
            open(Ipv4Addr::LOCALHOST, port, count, 1 << 20).ok()
        });
        let sockets = sockets.unwrap();
        let to = sockets[0].local_addr().unwrap();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        for datagram in datagrams {
            sender.send_to(datagram, to).unwrap();
        }
        // Over loopback they have arrived when they are sent.
        let received = |socket: &UdpSocket| {
            socket.set_nonblocking(true).unwrap();
            let mut bytes = [0; 128];
            std::iter::from_fn(|| socket.recv(&mut bytes).ok()).count()
        };
        sockets.iter().map(received).collect()
    }

    #[test]
    fn connections_made_one_after_another_use_all_sockets() {
        for ethertype in [0x0800, 0x86dd] {
            for count in 2..=4 {
                let ports = (0..64).map(|index| 40_000 + 2 * index);
                let datagrams: Vec<_> = ports.map(|port| datagram(ethertype, port)).collect();
                let shares = shares(count, &datagrams);
                assert_eq!(shares.iter().sum::<usize>(), 64, "{shares:?}");
                let fair = 64 / count;
                let even = shares.iter().all(|it| (fair / 2..=fair * 2).contains(it));
                assert!(even, "ethertype {ethertype:#x}: {shares:?}");
            }
        }
    }

    #[test]
    fn a_flow_stays_with_its_socket_and_what_is_too_short_goes_to_the_first() {
        let flow = vec![datagram(0x0800, 40_001); 8];
        assert!(shares(4, &flow).contains(&8));
        assert_eq!(shares(4, &[vec![0; 9]]), [1, 0, 0, 0]);
    }
}
