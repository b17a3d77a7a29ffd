//! TAP devices (`linux/if_tun.h`) with virtio-net headers and offloads.
//!
//! With a header before each frame ([`crate::codec::virtio`]) and offloads on,
//! the kernel hands out TCP and UDP super-frames of up to 64 KiB whole, their
//! checksums unfinished, and takes them in the same way.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd as _};
use std::os::unix::fs::OpenOptionsExt as _;

use rustix::io::{Errno, ReadWriteFlags, preadv2};

use crate::codec::virtio;

/// `struct ifreq` of 64-bit Linux: the name, then the flags in a union.
const IFREQ: usize = 40;
const NAME: usize = 16;

/// What every device here is opened with.
const FLAGS: libc::c_int = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;

/// The ioctls of `linux/if_tun.h`.
#[allow(unsafe_code)]
mod ioctl {
    nix::ioctl_write_ptr_bad!(set_interface, libc::TUNSETIFF, [u8; super::IFREQ]);
    nix::ioctl_read_bad!(get_interface, libc::TUNGETIFF, [u8; super::IFREQ]);
    nix::ioctl_write_int_bad!(set_persist, libc::TUNSETPERSIST);
    nix::ioctl_write_int_bad!(set_offload, libc::TUNSETOFFLOAD);
    nix::ioctl_write_ptr_bad!(set_header_size, libc::TUNSETVNETHDRSZ, libc::c_int);
    nix::ioctl_read_bad!(get_header_size, libc::TUNGETVNETHDRSZ, libc::c_int);
}

/// Checksums left to us, and TCP up to 64 KiB both ways.
const OFFLOAD: u32 = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;
/// UDP likewise, from Linux 6.2.
const UDP_OFFLOAD: u32 = libc::TUN_F_USO4 | libc::TUN_F_USO6;

/// How a device is opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// One of several queues of the device.
    pub multi_queue: bool,
    /// The device stays when its last descriptor is closed, with its addresses and routes.
    pub persistent: bool,
    pub nonblocking: bool,
}

/// One queue of a device.
#[derive(Debug)]
pub struct Opened {
    pub file: File,
    /// Whether the device takes and gives UDP of up to 64 KiB.
    pub udp: bool,
}

/// Opens the TAP `name` in this thread's network namespace, and makes it if it
/// isn't there.
///
/// # Errors
/// `InvalidInput` for a name of no or more than 15 bytes; `EBUSY` where another
/// descriptor has the device; `EINVAL` where it was made with other flags; what
/// the kernel says else.
pub fn open(name: &str, options: Options) -> io::Result<Opened> {
    let request = request(name, options)?;
    let mut how = File::options();
    how.read(true).write(true);
    if options.nonblocking {
        how.custom_flags(libc::O_NONBLOCK);
    }
    let file = how.open("/dev/net/tun")?;
    // SAFETY: the descriptor is open, and the request is a whole `struct ifreq`
    // that outlives the call, which keeps no pointer to it.
    #[allow(unsafe_code)]
    unsafe { ioctl::set_interface(file.as_raw_fd(), &request) }?;
    if options.persistent {
        // SAFETY: the descriptor is open, and the argument is a number.
        #[allow(unsafe_code)]
        unsafe { ioctl::set_persist(file.as_raw_fd(), 1) }?;
    }
    let udp = enable_offloads(&file)?;
    Ok(Opened { file, udp })
}

fn request(name: &str, options: Options) -> io::Result<[u8; IFREQ]> {
    if name.is_empty() || name.len() >= NAME {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{name:?} is no device name"),
        ));
    }
    let flags = match options.multi_queue {
        true => FLAGS | libc::IFF_MULTI_QUEUE,
        false => FLAGS,
    };
    let mut request = [0; IFREQ];
    request[..name.len()].copy_from_slice(name.as_bytes());
    // They fit: all of these are among the low 16 bits.
    request[NAME..NAME + 2].copy_from_slice(&(flags as u16).to_ne_bytes());
    Ok(request)
}

/// Tells the kernel what whoever reads the device can take: everything.
/// Returns whether UDP is in it.
fn enable_offloads(file: &File) -> io::Result<bool> {
    let size = virtio::LENGTH as libc::c_int;
    // SAFETY: the descriptor is open, and the number outlives the call.
    #[allow(unsafe_code)]
    unsafe { ioctl::set_header_size(file.as_raw_fd(), &size) }?;
    let set = |offloads: u32| {
        // SAFETY: the descriptor is open, and the argument is a number; the
        // flags are among its low bits.
        #[allow(unsafe_code)]
        unsafe {
            ioctl::set_offload(file.as_raw_fd(), offloads as libc::c_int)
        }
    };
    // A kernel before 6.2 refuses flags it doesn't know, all of them.
    if set(OFFLOAD | UDP_OFFLOAD).is_ok() {
        return Ok(true);
    }
    set(OFFLOAD)?;
    Ok(false)
}

/// What a descriptor that came from elsewhere is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    pub name: String,
    /// A TAP whose frames have headers of [`virtio::LENGTH`].
    pub has_header: bool,
}

/// Looks at a descriptor that should be an attached TAP.
///
/// # Errors
/// `ENOTTY` where it is no TUN or TAP; `EBADFD` where it has no device.
pub fn describe(descriptor: impl AsFd) -> io::Result<Description> {
    let raw = descriptor.as_fd().as_raw_fd();
    let mut request = [0; IFREQ];
    let mut size = 0;
    // SAFETY: the descriptor is open, and what is written to outlives the calls.
    #[allow(unsafe_code)]
    unsafe {
        ioctl::get_interface(raw, &mut request)?;
        ioctl::get_header_size(raw, &mut size)?;
    }
    let flags = i32::from(u16::from_ne_bytes([request[NAME], request[NAME + 1]]));
    let name = request[..NAME].split(|byte| *byte == 0).next();
    Ok(Description {
        name: String::from_utf8_lossy(name.unwrap_or_default()).into_owned(),
        has_header: flags & FLAGS == FLAGS && usize::try_from(size) == Ok(virtio::LENGTH),
    })
}

/// A device with several queues, which stays when we end.
#[derive(Debug)]
pub struct Tap {
    pub queues: Vec<File>,
    /// Whether it takes and gives UDP of up to 64 KiB.
    pub udp: bool,
}

impl Tap {
    /// Opens all queues of the TAP `name`, as [`open`] does.
    pub fn open(name: &str, queues: usize) -> io::Result<Self> {
        let options = Options {
            multi_queue: true,
            persistent: true,
            nonblocking: false,
        };
        let opened = (0..queues.max(1))
            .map(|_| open(name, options))
            .collect::<io::Result<Vec<_>>>()?;
        Ok(Self {
            udp: opened.iter().all(|queue| queue.udp),
            queues: opened.into_iter().map(|queue| queue.file).collect(),
        })
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_the_kernel_has_no_room_for_is_refused() {
        for name in ["", "sixteen-letters-"] {
            let error = request(name, Options::default()).unwrap_err();
            assert!(error.to_string().contains(name), "{error}");
        }
        assert!(request("fifteen-letters", Options::default()).is_ok());
    }

    #[test]
    fn what_is_no_tap_is_told_apart() {
        let error = describe(File::open("/dev/null").unwrap()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOTTY));
    }
}
