//! The TAP device of mode `host`, with virtio headers and several queues.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::fd::AsRawFd as _;

use rustix::io::{Errno, ReadWriteFlags, preadv2};

/// `struct ifreq` of 64-bit Linux: the name, then the flags in a union.
const IFREQ: usize = 40;
const NAME: usize = 16;

/// The ioctls of `linux/if_tun.h`.
#[allow(unsafe_code)]
mod ioctl {
    nix::ioctl_write_ptr_bad!(set_interface, libc::TUNSETIFF, [u8; super::IFREQ]);
    nix::ioctl_write_int_bad!(set_persist, libc::TUNSETPERSIST);
    nix::ioctl_write_int_bad!(set_offload, libc::TUNSETOFFLOAD);
}

/// Checksums left to us, and TCP up to 64 KiB both ways.
const OFFLOAD: u32 = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;
/// UDP likewise, from Linux 6.2.
const UDP_OFFLOAD: u32 = libc::TUN_F_USO4 | libc::TUN_F_USO6;

/// An open device.
#[derive(Debug)]
pub struct Tap {
    pub queues: Vec<File>,
    /// Whether it takes and gives UDP of up to 64 KiB.
    pub udp: bool,
}

impl Tap {
    /// Opens the TAP `name` in this thread's network namespace, and makes it
    /// if it isn't there. It stays when we end, with its addresses and routes.
    /// One that was made with other flags gives EINVAL.
    pub fn open(name: &str, queues: usize) -> io::Result<Self> {
        let queues = (0..queues.max(1))
            .map(|_| open_queue(name))
            .collect::<io::Result<Vec<_>>>()?;
        let first = queues[0].as_raw_fd();
        // SAFETY: the descriptor is open, and the argument is a number.
        #[allow(unsafe_code)]
        unsafe { ioctl::set_persist(first, 1) }?;
        let offload = |flags: u32| {
            // SAFETY: the descriptor is open, and the argument is a number; the
            // flags are among its low bits.
            #[allow(unsafe_code)]
            unsafe {
                ioctl::set_offload(first, flags as libc::c_int)
            }
        };
        let udp = offload(OFFLOAD | UDP_OFFLOAD).is_ok();
        if !udp {
            offload(OFFLOAD)?;
        }
        Ok(Self { queues, udp })
    }
}

fn open_queue(name: &str) -> io::Result<File> {
    let queue = File::options()
        .read(true)
        .write(true)
        .open("/dev/net/tun")?;
    let mut request = [0; IFREQ];
    if name.len() >= NAME {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    request[..name.len()].copy_from_slice(name.as_bytes());
    // They fit: all flags are among the low 16 bits.
    let flags =
        (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_MULTI_QUEUE) as u16;
    request[NAME..NAME + 2].copy_from_slice(&flags.to_ne_bytes());
    // SAFETY: the descriptor is open, and the request is a whole `struct ifreq`
    // that outlives the call, which keeps no pointer to it.
    #[allow(unsafe_code)]
    unsafe { ioctl::set_interface(queue.as_raw_fd(), &request) }?;
    Ok(queue)
}

/// Reads a frame with its virtio header, waiting for one.
pub fn read(queue: &File, memory: &mut [u8]) -> io::Result<usize> {
    loop {
        match rustix::io::read(queue, &mut *memory) {
            Err(Errno::INTR) => {}
            other => return Ok(other?),
        }
    }
}

/// Reads a frame if there is one now. A kernel that can't tell (before 5.12)
/// has never one.
pub fn read_now(queue: &File, memory: &mut [u8]) -> io::Result<Option<usize>> {
    let mut parts = [IoSliceMut::new(memory)];
    match preadv2(queue, &mut parts, u64::MAX, ReadWriteFlags::NOWAIT) {
        Ok(length) => Ok(Some(length)),
        Err(Errno::AGAIN | Errno::INTR | Errno::OPNOTSUPP | Errno::NOSYS) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
