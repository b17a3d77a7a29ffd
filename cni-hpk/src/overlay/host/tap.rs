//! The TAP device of mode `host`.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;

/// `struct ifreq` of 64-bit Linux: the name, then the flags in a union.
const IFREQ: usize = 40;
const NAME: usize = 16;

/// The ioctls of `linux/if_tun.h`.
#[allow(unsafe_code)]
mod ioctl {
    nix::ioctl_write_ptr_bad!(set_interface, libc::TUNSETIFF, [u8; super::IFREQ]);
    nix::ioctl_write_int_bad!(set_persist, libc::TUNSETPERSIST);
}

/// Opens the TAP `name` in this thread's network namespace, and makes it if it
/// isn't there. It stays when we end, with its addresses and routes.
pub fn open(name: &str) -> io::Result<File> {
    let tap = File::options()
        .read(true)
        .write(true)
        .open("/dev/net/tun")?;
    let mut request = [0; IFREQ];
    if name.len() >= NAME {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    request[..name.len()].copy_from_slice(name.as_bytes());
    // They fit: both flags are among the low 16 bits.
    let flags = (libc::IFF_TAP | libc::IFF_NO_PI) as u16;
    request[NAME..NAME + 2].copy_from_slice(&flags.to_ne_bytes());
    // SAFETY: the descriptor is open, and the request is a whole `struct ifreq`
    // that outlives the call, which keeps no pointer to it.
    #[allow(unsafe_code)]
    unsafe { ioctl::set_interface(tap.as_raw_fd(), &request) }?;
    // SAFETY: the descriptor is open, and the argument is a number.
    #[allow(unsafe_code)]
    unsafe { ioctl::set_persist(tap.as_raw_fd(), 1) }?;
    Ok(tap)
}
